"""Metrics whose answer is known: embeddings, flows and tracks made for it; any split and two processes agree."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules.trackers.base import Tracks
from datamodules.trackers.points import LucasKanade
from metrics import (
    Clip,
    ControlError,
    FeatureNetwork,
    FrameConsistency,
    FrechetImageDistance,
    FrechetVideoDistance,
    MDImg,
    MDVid,
    MeanFlowMagnitude,
    RandomFrameFeatures,
    RandomPointFeatures,
    RandomVideoFeatures,
    add_clip,
    applicable,
    evaluate,
    shown,
)
from metrics.correspondence import match
from metrics.published import TITLES, WEBVID, cells, data_said, latex, table, tables, with_data
from remoco.common.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:FVD over", "ignore:a Frechet distance", "ignore:The ``compute`` method")
SIZE = (48, 64)


def pattern(height: int = 120, width: int = 140, seed: int = 3) -> torch.Tensor:
    """(3, H, W) smooth noise, unlike itself everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)


def shifted(path: list[tuple[int, int]]) -> torch.Tensor:
    """(L, 3, 48, 64) uint8: a window over the pattern, so that what is seen moves by `path` pixels x, y."""
    ground, (height, width) = (pattern() * 255).round().byte(), SIZE
    return torch.stack([ground[:, 36 - y : 36 - y + height, 38 - x : 38 - x + width] for x, y in path])


PATH = [(0, 0), (2, 1), (4, 1), (7, 3)]


def target(starts: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(starts)[:, None] + torch.tensor(PATH)[None].double()


class Colour(FeatureNetwork):
    """The first pixel's colour as embedding."""

    num_features, name, protocol = 3, "colour", "the first pixel"

    def forward(self, images):
        return images[:, :, 0, 0].float()


def test_frame_consistency_of_known_embeddings():
    """Angles of 0, 90 and 45 degrees between neighbours: cosines 1, 0 and 0.7071, their mean; then over clips."""
    colours = torch.tensor([[200, 0, 0], [100, 0, 0], [0, 50, 0], [0, 50, 50]], dtype=torch.uint8)
    video = colours[:, :, None, None].expand(-1, -1, 8, 8)
    metric = FrameConsistency(Colour())
    metric.update(video)
    assert metric.compute().item() == pytest.approx((1 + 0 + 2**-0.5) / 3, abs=1e-12)
    metric.update(video[:2])
    assert metric.compute().item() == pytest.approx(((1 + 0 + 2**-0.5) / 3 + 1) / 2, abs=1e-12)
    assert metric.name == "frame_consistency_colour" and metric.result()["n"] == 2
    with pytest.raises(ValueError, match="at least 2 frames"):
        metric.update(video[:1])


def test_flow_magnitude_of_a_known_flow():
    class Known:
        name, version = "known", "1"

        def __call__(self, frames):
            flow = np.zeros((len(frames), 2, *frames.shape[2:]), dtype=np.float32)
            flow[1:, 0], flow[1:, 1] = 3, 4
            flow[2:] *= 2
            return Tracks(flow, np.ones(flow[:, 0].shape, bool))

    metric = MeanFlowMagnitude(Known())
    metric.update(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert metric.compute().item() == pytest.approx(7.5, abs=1e-9) and metric.name == "flow_magnitude_known"
    assert "in pixels of clips 8 wide, frames 2 to L" in metric.result()["protocol"]
    assert "7.50 (8 wide)" in table({"ours": {metric.name: metric.result()}}, 1, "clips")
    other = MeanFlowMagnitude(Known())
    other.update(torch.zeros(3, 3, 8, 24, dtype=torch.uint8))
    for name, reduction in metric._reductions.items():  # of another rank
        setattr(metric, name, reduction(torch.stack([getattr(metric, name), getattr(other, name)])))
    metric._computed = None
    found = metric.result()
    assert (found["narrowest"], found["widest"]) == (8, 24) and "clips 8 to 24 wide" in found["protocol"]
    assert "7.50 (8 to 24 wide)" in table({"ours": {metric.name: found}}, 1, "clips")


@pytest.mark.parametrize("starts", [[(30, 20)], [(20, 12), (40, 30)], [(1, 2), (60, 20), (30, 46)]])
def test_md_vid_of_exact_tracks_is_small_at_the_border_too(starts):
    clip = Clip("a", shifted(PATH), tracks=target(starts))
    metric = MDVid(LucasKanade(fallback="dis"))
    add_clip([metric], clip)
    away = metric.compute().item()
    inside = all(0 <= x + 7 < 64 and 0 <= y + 3 < 48 for x, y in starts)
    assert away < 0.2 if inside else away < 4  # what left the frame cannot be followed
    still = MDVid(LucasKanade(fallback="dis"))
    add_clip([still], Clip("b", shifted([(0, 0)] * 4), tracks=target(starts)))
    length = torch.tensor(PATH[1:]).double().norm(dim=1).mean().item()
    assert still.compute().item() == pytest.approx(length, abs=0.2) and metric.name == "md_vid_lk"


def test_md_img_of_a_shift_and_of_a_clip_that_stands_still():
    starts = [(20, 12), (35, 30)]
    metric = MDImg()
    add_clip([metric], Clip("a", shifted(PATH), tracks=target(starts)))
    assert metric.compute().item() < 0.5
    metric.reset()
    add_clip([metric], Clip("b", shifted([(0, 0)] * 4), tracks=target(starts)))
    assert metric.compute().item() == pytest.approx(torch.tensor(PATH[1:]).double().norm(dim=1).mean().item(), abs=1e-9)


def test_micro_is_over_points_and_the_value_over_videos():
    metric = MDImg()
    metric.update(torch.zeros(3, 2, 2), torch.tensor([3.0, 4.0]).expand(3, 2, 2))
    metric.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    result = metric.result()
    assert result["value"] == 2.5 and result["micro"] == 5 * 6 / 8 and result["n"] == 2


def test_a_match_by_channels_is_the_match_of_the_upsampled_maps():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 6, 8, generator=generator), torch.randn(300, 6, 8, generator=generator)
    points = torch.tensor([[0, 0], [15, 11], [31, 23]])
    full_a, full_b = (torch.nn.functional.interpolate(x[None], (24, 32), mode="bilinear")[0] for x in (a, b))
    cosine = torch.nn.functional.cosine_similarity(
        full_a[:, points[:, 1], points[:, 0]].T[:, :, None, None], full_b[None]
    )
    best = cosine.flatten(1).argmax(1)
    assert torch.equal(match(a, b, points, 24, 32), torch.stack([best % 32, best // 32], 1).float())


@pytest.mark.parametrize("channels", [1, 3, 64, 200])
@pytest.mark.parametrize(
    "small, size", [((4, 4), (64, 64)), ((5, 7), (40, 56)), ((33, 65), (33, 65)), ((10, 16), (80, 128))]
)
def test_a_match_is_the_first_of_equal_cells_in_reading_order(channels, small, size):
    """One feature everywhere; and two stripes that repeat: rounding must not choose among what is equal."""
    generator = torch.Generator().manual_seed(channels)
    (h, w), (height, width) = small, size
    same = torch.randn(channels, 1, 1, generator=generator).expand(channels, h, w)
    points = torch.tensor([[width // 2, height // 2], [3, 5], [width - 1, height - 1]])
    assert match(same, same, points, height, width).tolist() == [[0, 0]] * 3
    assert match(same, 3 * same.contiguous(), points, height, width).tolist() == [[0, 0]] * 3
    rows = torch.randn(channels, 4, 1, generator=generator)
    if channels > 1:  # of one channel every cosine is 1 or -1
        stripes = rows.repeat(1, 5, 1).expand(channels, 20, 31)
        asked = torch.tensor([[17, 13], [0, 19], [30, 4]])
        assert match(stripes, stripes, asked, 20, 31).tolist() == [[0, 1], [0, 3], [0, 0]]


def test_features_that_are_not_finite_match_nothing():
    a, b = torch.ones(2, 4, 4), torch.full((2, 4, 4), float("nan"))
    with pytest.raises(ValueError, match="features: expected finite values"):
        match(a, b, torch.tensor([[1, 1]]), 4, 4)


def test_tracks_that_do_not_fit_are_named():
    metric = MDImg()
    with pytest.raises(ValueError, match="a: md_img_random_features: tracks have 3 frames, the video 4"):
        add_clip([metric], Clip("a", shifted(PATH), tracks=target([(1, 1)])[:, :3]))
    with pytest.raises(ValueError, match="outside the frame of 48 x 64"):
        add_clip([metric], Clip("a", shifted(PATH), tracks=target([(64, 1)])))
    with pytest.raises(ValueError, match="uint8"):
        add_clip([metric], Clip("a", torch.full((4, 3, 8, 8), float("nan")), tracks=target([(1, 1)])))


def test_control_error_of_tracked_points_beside_what_it_is_read_beside():
    """The real clip moves by PATH; the generated one moves half as far, so its error is half of standing still's."""
    real, half = shifted([(2 * x, 2 * y) for x, y in PATH]), shifted(PATH)
    flow = 2 * torch.tensor(PATH).float().view(4, 2, 1, 1).expand(4, 2, *SIZE)
    visible = torch.zeros(4, *SIZE, dtype=torch.bool)
    visible[:, 14:34, 14:44] = True  # what stays in the frame
    visible[0] = True
    metric = ControlError(LucasKanade(), other_control=True)
    clip = Clip("a", half, real, None, flow, visible, lambda: shifted([(0, 0)] * 4))
    add_clip([metric], clip)
    result = metric.result()
    assert metric.name == "control_error_lk" and result["n"] == 1
    assert result["value"] == pytest.approx(result["standing_still"] / 2, abs=0.1)
    assert result["own_error"] < 0.1 and result["other_control"] == pytest.approx(result["standing_still"], abs=0.1)
    assert applicable([metric], {"reference", "flow", "visibility"}) == []


def test_nothing_moves_nothing_counts():
    metric = ControlError(LucasKanade())
    still, shape = shifted([(0, 0)] * 4), (4, *SIZE)
    add_clip([metric], Clip("a", still, still, None, torch.zeros(4, 2, *SIZE), torch.ones(shape, dtype=torch.bool)))
    with pytest.raises(UserError, match="at least one clip"):
        metric.compute()


def test_fid_is_torchmetrics_where_both_are_accurate():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (40, 3, 3, 16, 16), dtype=torch.uint8, generator=generator) // k for k in (1, 2))
    ours, theirs = FrechetImageDistance(), FrechetInceptionDistance(RandomFrameFeatures())
    for videos, real in ((a, True), (b, False)):
        ours.update(videos, real=real)
        theirs.update(videos.flatten(0, 1), real=real)
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-4)
    assert "120 reference, 120 generated frames" in ours.protocol


@pytest.mark.parametrize(
    "make", [FrechetVideoDistance, FrechetImageDistance, FrameConsistency, MDImg, lambda: MDVid(LucasKanade())]
)
def test_any_split_over_two_processes_gives_one_number(make):
    paths = [
        PATH,
        [(0, 0), (1, 1), (2, 2), (3, 3)],
        [(0, 0), (-2, 0), (-4, 1), (-5, 2)],
        [(0, 0), (0, 1), (0, 3), (0, 4)],
    ]
    clips = [
        Clip(str(i), shifted(path), shifted(paths[(i + 1) % 4]), target([(20, 20), (30, 24)]))
        for i, path in enumerate(paths)
    ]
    whole, parts = make(), [make(), make()]
    for metric in (whole, *parts):
        metric.load()
    add_clip_each(whole, clips)
    add_clip_each(parts[0], clips[:1])
    add_clip_each(parts[1], clips[1:])
    together = parts[0]
    for name, reduction in together._reductions.items():  # what torchmetrics does with the states of two ranks
        setattr(together, name, reduction(torch.stack([getattr(part, name) for part in parts])))
    assert int(together.clips) == 4
    assert together.compute().item() == pytest.approx(whole.compute().item(), abs=1e-9, rel=1e-9)


def add_clip_each(metric, clips):
    for clip in clips:
        add_clip([metric], clip)


def test_equal_sides_are_at_distance_zero_and_the_result_says_what_it_is():
    clips = [Clip(str(i), shifted([(i, 0), (0, i)]), shifted([(i, 0), (0, i)])) for i in range(6)]
    metrics = [FrechetVideoDistance(RandomVideoFeatures()), FrechetImageDistance()]
    results = evaluate(metrics, clips, "read from memory")
    for metric in metrics:
        result = results[metric.name]
        assert set(result) == {"value", "protocol", "n", "seconds"} and result["n"] == 6 and result["seconds"] > 0
        assert result["protocol"].endswith("n = 6 clips; read from memory")
        assert abs(result["value"]) < 1e-6 * metric._gaussian("real")[1].trace()
    assert evaluate(metrics, clips)["fvd_random_features"]["n"] == 6  # from the start, not on top


@pytest.mark.parametrize("size", [10.0**power for power in range(-12, 9)])
def test_a_number_that_is_not_zero_reads_as_itself_to_six_digits(size):
    for value in (1.0, 1.234567890123, 9.9999949, 9.9999951, -3.00000049):
        text = shown(value * size, 2)
        assert float(text) == pytest.approx(value * size, rel=5.1e-6) and float(text) != 0
        assert "e" in text or len(text.partition(".")[2]) >= 2
    assert float(shown(1.234567890123 * size)) == pytest.approx(float(f"{1.234567890123 * size:.6g}"), rel=5e-6)


def test_a_small_number_is_not_zero_in_a_table():
    """What was printed as 0.00 and 0.0000."""
    small = {"fvd_i3d_disco": {"value": 1.25e-3}, "fid_inception": {"value": 4e-9},
             "frame_consistency": {"value": 1e-5}, "flow_magnitude_dis": {"value": 0.000123456789}}  # fmt: skip
    row = next(line for line in table({"ours": small}, 1, "clips").splitlines() if line.startswith("ours")).split()
    assert row == ["ours", "0.00125", "4e-09", "0.00001", "0.000123457"]
    near = {name: {"value": value} for name, value in (("md_vid", 8.123456789), ("frame_consistency", 0.99999987))}
    assert "8.12346" in table({"ours": near}, 2, None) and " 1.0000" in table({"ours": near}, 2, None)


def test_random_point_features_are_seeded():
    image = shifted([(0, 0)])[0]
    assert torch.equal(RandomPointFeatures(1)(image), RandomPointFeatures(1)(image))
    assert RandomPointFeatures(1)(image).shape == (128, *SIZE)


def test_tables_quote_and_mark():
    real = {"md_img": 9.994, "md_vid": 8.1, "frame_consistency": 0.99444, "flow_magnitude": 5.0}
    ours = {f"fine/{name}": {"value": value} for name, value in real.items()}
    stand_ins = {f"object/{name}_lk": {"value": value} for name, value in real.items()}
    fine, objects = tables({"ours": ours | stand_ins}, None).split("\n\n")
    assert fine.startswith("Table 2") and objects.startswith("Table 3")
    assert "ours" in fine and "9.99" in fine and "0.9944" in fine and "*" not in fine and "5.00" in fine
    assert "MOFA-Video (quoted)" in fine and "10.50" in fine
    assert "8.10 *" in objects and "a stand-in" in objects and "md_vid_lk" in objects
    assert cells({}, 1) == [None] * 3
    both = {"md_vid_lk": {"value": 1.0}, "md_vid": {"value": 2.0}}
    assert cells(both, 2)[1] == ("md_vid", "2.00")  # the published metric, whichever was measured first


def test_quoted_rows_stand_beside_published_metrics_on_the_published_set_alone():
    fvd, fid = {"fvd_i3d_styleganv": {"value": 60.0}}, {"fid_random_features": {"value": 3.0}}

    def rows(measured, data):
        lines = table({"ours": measured}, 1, data).splitlines()
        return lines[0], [line.split()[:4] for line in lines if "DragNUWA" in line]

    assert rows(fvd | fid, None) == (TITLES[1], [["DragNUWA", "(quoted)", "96.65", "-"]])  # not above a stand-in
    assert rows(fid, None) == (TITLES[1], []) and rows({}, None) == (TITLES[1], [])
    assert rows(fvd, "validation clips, 64 x 64 sprites") == ("Validation clips, 64 x 64 sprites", [])
    assert "quoted" not in latex({"ours": fvd}, "clips") and "DragNUWA (quoted)" in latex({"ours": fvd}, None)


def test_the_data_of_a_table_are_those_of_its_protocols():
    def said(*data):
        return data_said([{"fid_inception": {"protocol": with_data("p; q", each) if each else "p"}} for each in data])

    assert said(WEBVID, WEBVID) is None and said("64 x 64 sprites") == "64 x 64 sprites"
    for mixed in ((WEBVID, "64 x 64 sprites"), (WEBVID, ""), ("",)):
        assert said(*mixed) == "videos beside real clips"
