"""Control error on clips whose answer is known."""

import pytest
import torch

from metrics import Clip, ControlError, match_template, moving_object
from remoco.common.errors import UserError


def disc(centre: tuple[float, float], size: int = 48, radius: float = 7.0) -> torch.Tensor:
    """(3, H, W) uint8: a shaded disc over a still gradient."""
    y, x = torch.meshgrid(torch.arange(size).float(), torch.arange(size).float(), indexing="ij")
    inside = (torch.hypot(x - centre[0], y - centre[1]) < radius).float()
    ground = torch.stack([x, y, x + y]) * 1.5 + 20
    colour = torch.tensor([230.0, 60.0, 120.0]).view(3, 1, 1) * (1 - 0.01 * (x - centre[0] + y - centre[1]))
    return (ground + inside * (colour - ground)).clamp(0, 255).round().byte()


def clip(path: list[tuple[int, int]], start: tuple[int, int] = (14, 20)) -> torch.Tensor:
    return torch.stack([disc((start[0] + dx, start[1] + dy)) for dx, dy in path])


def mask_at(x: int = 14, y: int = 20, size: int = 48) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.hypot(columns - float(x), rows - float(y)) < 7


PATH = [(0, 0), (3, 1), (9, 4), (20, 12)]


def test_the_object_is_found_where_it_is():
    """Whole pixels, exactly; partly outside the frame too."""
    assert match_template(clip(PATH), clip(PATH)[0], mask_at()).tolist() == [list(map(float, p)) for p in PATH]
    out = [(0, 0), (-12, 0), (0, -19), (31, 5)]
    assert match_template(clip(out), clip(out)[0], mask_at()).tolist() == [list(map(float, p)) for p in out]


def test_known_answers():
    """The true clip is at distance 0; a still one at the mean length of its track; one 3, 4 px off at 5."""
    video, track = clip(PATH)[None], torch.tensor(PATH)[None].float()
    still = video[:, :1].expand(-1, len(PATH), -1, -1, -1)
    off = clip([(0, 0)] + [(x + 3, y + 4) for x, y in PATH[1:]])[None]
    length = torch.linalg.vector_norm(track[0, 1:].double(), dim=1).mean().item()
    for videos, answer in ((video, 0.0), (still, length), (off, 5.0)):
        metric = ControlError()
        metric.update(videos, video[:, 0], mask_at()[None], track)
        assert metric.compute().item() == pytest.approx(answer, abs=1e-12)


def test_any_split_agrees():
    """One batch of three or three of one, and two processes' sums."""
    videos = torch.stack([clip(PATH), clip(PATH[::-1], (20, 24)), clip([(0, 0), (5, 5), (6, 7), (8, 8)])])
    masks = torch.stack([mask_at(), mask_at(40, 36), mask_at()])
    tracks = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)) * 9
    whole, parts = ControlError(), [ControlError(), ControlError()]
    whole.update(videos, videos[:, 0], masks, tracks)
    for i, part in enumerate((parts[0], parts[1], parts[1])):
        part.update(videos[i : i + 1], videos[i : i + 1, 0], masks[i : i + 1], tracks[i : i + 1])
    total = sum(p.total for p in parts) / sum(p.clips for p in parts)
    assert abs(whole.compute() - total) < 1e-9


def test_moving_object_reads_mask_and_track():
    flow = torch.zeros(1, 4, 2, 48, 48)
    flow += torch.tensor(PATH).view(1, 4, 2, 1, 1) * mask_at()
    mask, track = moving_object(flow)
    assert torch.equal(mask[0], mask_at()) and track[0].tolist() == [list(map(float, p)) for p in PATH]


def test_wrong_shapes_and_empty_masks_are_named():
    video = clip(PATH)[None]
    with pytest.raises(ValueError, match="tracks is .* expected"):
        ControlError().update(video, video[:, 0], mask_at()[None], torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="mask is empty"):
        ControlError().update(video, video[:, 0], torch.zeros(1, 48, 48, dtype=torch.bool), torch.zeros(1, 4, 2))
    with pytest.raises(UserError, match="at least one clip"):
        ControlError().compute()


def test_a_clip_added_after_a_result_counts(recwarn):
    """And torchmetrics does not warn that nothing was added."""
    video = clip(PATH)
    flow = torch.tensor(PATH).view(4, 2, 1, 1) * mask_at().float()
    metric = ControlError()
    metric.add(Clip("own", video, reference=video, flow=flow))
    assert metric.result()["value"] == 0 and metric.result()["n"] == 1
    metric.add(Clip("still", video[:1].expand_as(video), reference=video, flow=flow))
    found = metric.result()
    assert found["n"] == 2 and found["value"] == pytest.approx(found["standing_still"] / 2)
    assert not [str(warning.message) for warning in recwarn if "before the ``update``" in str(warning.message)]
