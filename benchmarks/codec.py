"""Megabytes per clip on disk, member by member, over the named set of clip_set.py, and the flow's largest error.

    python benchmarks/codec.py [--clips FOLDER]
    python benchmarks/codec.py --long  # instead: clips of the lengths and sizes of Wan, and the CPU time of each part

1 MB is 10^6 bytes; what tar adds (headers and padding, at most 1.5 KB a member) is counted. Without the folder of real
videos only the generated clips are measured.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import clip_set
import harness
import numpy as np

from datamodules.shards import FLOW, MASKS, MEMBERS, VIDEO, flow_codec, mask_codec
from remoco.common.videos import mp4

GOALS = {"generated": 1.05, "smooth": 0.85, "real": 1.05}
BLOCK = 512
REST = {"clip": 3, "error": 4, "ms": 0}  # digits after the point


def in_tar(size: int) -> int:
    """Bytes that a member takes in a tar: its header, and its content in whole blocks."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def measure(clip: clip_set.Tracked) -> dict[str, float]:
    """Encode a clip; MB of each member and of the clip in a tar, largest error in px, CPU ms to decode the tracks."""
    members = clip.encode()
    begin = time.process_time()
    stored = flow_codec.decode_flow(members[FLOW], clip.flow.shape)
    visibility, moving = np.empty_like(clip.visibility), np.empty((2, *clip.visibility.shape[1:]), bool)
    mask_codec.decode_masks(members[MASKS], visibility, moving)
    milliseconds = (time.process_time() - begin) * 1e3
    assert (visibility == clip.visibility).all()
    error = np.abs(flow_codec.to_pixels(stored, flow_codec.STEP) - clip.flow)
    error = float(error.max(where=clip.visibility[:, None], initial=0))
    sizes = {kind: len(members[kind]) / 1e6 for kind in MEMBERS}
    total = sum(in_tar(len(data)) for data in members.values()) / 1e6
    return {**sizes, "clip": total, "error": error, "ms": milliseconds}


def row(name: str, values: dict[str, float]) -> list[str]:
    sizes = [f"{values[kind]:.3f}" for kind in MEMBERS[:3]]
    small = sum(values[kind] for kind in MEMBERS[3:])
    return [name, f"{values['px']:.1f}", *sizes, f"{small:.4f}", *(f"{values[k]:.{n}f}" for k, n in REST.items())]


def long_row(shape: tuple[int, int, int, float], rounds: int) -> list[str]:
    """MB of a long clip and CPU ms to decode its parts, medians; GB is the most that the process held up to here."""
    clip = clip_set.long(*shape)
    members, encoding, _ = harness.timed(clip.encode)
    flow, visibility = np.empty(clip.flow.shape, np.uint16), np.empty_like(clip.visibility)
    moving, frames = np.empty((2, *visibility.shape[1:]), bool), np.empty_like(clip.frames)
    parts: dict[str, Callable[[], object]] = {
        "video": lambda: mp4.decode_mp4(members[VIDEO], frames.shape, frames),
        "first": lambda: mp4.decode_first_frame(members[VIDEO], frames.shape[1:]),
        "flow": lambda: flow_codec.decode_flow(members[FLOW], flow.shape, flow),
        "masks": lambda: mask_codec.decode_masks(members[MASKS], visibility, moving),
    }
    spent = harness.interleaved(
        {name: lambda call=call: harness.timed(call)[1] for name, call in parts.items()}, rounds
    )
    sizes = [f"{len(members[kind]) / 1e6:.2f}" for kind in (VIDEO, FLOW, MASKS)]
    total = sum(in_tar(len(data)) for data in members.values()) / 1e6
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = [f"{np.median(spent[name]) * 1e3:.0f}" for name in parts]
    return [clip.name, f"{clip.magnitude:.1f}", *sizes, f"{total:.2f}", *times, f"{encoding:.0f}", f"{held:.1f}"]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--clips", type=Path, help="folder of real videos, measured besides generated clips")
    parser.add_argument("--long", action="store_true", help="measure long clips instead")
    parser.add_argument("--rounds", type=int, default=5, help="of decoding a long clip, after one")
    args = parser.parse_args()
    if args.long:
        sizes = [f"{what}, MB" for what in ("mp4", "flow", "masks", "clip")]
        times = [f"{what}, ms" for what in ("video", "first frame", "flow", "masks")]
        heads = ["clip", "mean flow, px", *sizes, *times, "encoding, s", "GB held"]
        rows = []
        for shape in clip_set.LONG:
            rows.append(long_row(shape, args.rounds))
            print(*rows[-1], sep=" | ", flush=True)
        print(harness.table(heads, rows))
        return
    folder = args.clips
    sets = {
        "generated": (clip_set.generated(number) for number in range(clip_set.GENERATED)),
        "smooth": (clip_set.smooth(number) for number in range(clip_set.GENERATED)),
        "real": clip_set.real(folder) if folder is not None else (),
    }
    rows, verdicts = [], []
    for what, clips in sets.items():
        found = []
        for clip in clips:
            found.append({**measure(clip), "px": clip.magnitude})
            rows.append(row(clip.name, found[-1]))
        if found:
            mean = {key: float(np.mean([values[key] for values in found])) for key in found[0]}
            mean["error"] = max(values["error"] for values in found)
            rows.append(row(f"**mean of {len(found)} {what}**", mean))
            verdict = "reached" if mean["clip"] <= GOALS[what] else "NOT REACHED"
            verdicts.append(f"{what}: {mean['clip']:.2f} MB, goal at most {GOALS[what]} MB: {verdict}")
    heads = ["clip", "mean flow, px", *MEMBERS[:3], "txt + json", "clip, MB", "largest error, px", "tracks, ms"]
    print(harness.table(heads, rows), "", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
