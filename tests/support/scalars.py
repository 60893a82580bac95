"""What a run has logged."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMED = "usage/"


def points(run: Path) -> dict[str, set[tuple[int, float]]]:
    """Tag -> the (step, value) pairs in a run's event files, images as their bytes; without what measures time."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    found = {tag: {(e.step, e.value) for e in events.Scalars(tag)} for tag in tags["scalars"]}
    found |= {tag: {(e.step, e.encoded_image_string) for e in events.Images(tag)} for tag in tags["images"]}
    return {tag: pairs for tag, pairs in found.items() if not tag.startswith(TIMED)}
