"""The Frechet metrics against numpy and scipy, and what makes their numbers trustworthy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics import (
    Clip,
    FeatureNetwork,
    FrechetVideoDistance,
    I3DFeatures,
    InceptionFeatures,
    RandomFrameFeatures,
    RandomVideoFeatures,
    frechet_distance,
)
from remoco.common.errors import UserError
from tests.support.feature_networks import FakeI3D, FakeInception, save_script

pytestmark = pytest.mark.filterwarnings("ignore:FVD over", "ignore:a Frechet distance")


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula with scipy's matrix square root."""
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


class FirstPixels(FeatureNetwork):
    """Features that a test can choose: the first frame's first pixels."""

    name = protocol = "first pixels"

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, videos):
        return videos[:, 0].flatten(1)[:, : self.num_features].float()


def clips(n: int, seed: int, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (n, 4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def distance(metric: FrechetVideoDistance, real: torch.Tensor, fake: torch.Tensor, batch: int) -> float:
    metric.reset()
    for side, videos in ((True, real), (False, fake)):
        for part in videos.split(batch):
            metric.update(part, real=side)
    return float(metric.compute())


def test_the_core_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    b = rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12)) + 0.3
    moments = [torch.from_numpy(np.asarray(x)) for v in (a, b) for x in (v.mean(0), np.cov(v, rowvar=False))]
    assert float(frechet_distance(*moments)) == pytest.approx(reference(a, b), rel=1e-9)


def test_one_dimension_has_a_closed_form():
    one = torch.ones(1)
    got = frechet_distance(3 * one, 4 * one[None], 1 * one, 9 * one[None])  # (3 - 1)^2 + (2 - 3)^2
    assert float(got) == pytest.approx(5.0)
    assert got.dtype == torch.float64


def test_singular_covariances_give_a_real_number_that_vanishes_for_equal_sets():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = (x.mean(0), torch.cov(x.T))
    assert abs(float(frechet_distance(*moments, *moments))) < 1e-6


@pytest.mark.parametrize("n_real", [30, 40])
def test_the_metric_agrees_with_scipy(n_real):
    real, fake = clips(n_real, 0), clips(40, 1, 60, 200)
    got = distance(FrechetVideoDistance(FirstPixels(10)), real, fake, batch=7)
    features = [v[:, 0].flatten(1)[:, :10].double().numpy() for v in (real, fake)]
    assert got == pytest.approx(reference(*features), rel=1e-9)


def test_the_batch_split_does_not_matter():
    metric = FrechetVideoDistance(FirstPixels(6))
    real, fake = clips(9, 0), clips(9, 1, 40, 180)
    whole = distance(metric, real, fake, batch=9)
    assert distance(metric, real, fake, batch=2) == pytest.approx(whole, rel=1e-9)
    assert whole > 0


def test_two_processes_sum_to_one():
    """What torchmetrics does under DDP with `dist_reduce_fx="sum"`: add the states of the ranks."""
    real, fake = clips(11, 0), clips(11, 1, 40, 180)
    whole = distance(FrechetVideoDistance(FirstPixels(6)), real, fake, batch=11)
    ranks = [FrechetVideoDistance(FirstPixels(6)) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(real[rank::2], real=True)
        metric.update(fake[rank::2], real=False)
    for name in ranks[0]._defaults:
        assert ranks[0]._reductions[name] is not None
        setattr(ranks[0], name, ranks[0]._reductions[name](torch.stack([getattr(m, name) for m in ranks])))
    ranks[0]._computed = None
    assert float(ranks[0].compute()) == pytest.approx(whole, rel=1e-12)


def test_the_protocol_names_network_frames_n_and_reference():
    metric = FrechetVideoDistance(RandomVideoFeatures(seed=3), reference="vae")
    distance(metric, clips(3, 0), clips(4, 1), batch=2)
    for part in ("seed 3", "4 frames", "3 reference, 4 generated", "reference: vae", "np.cov"):
        assert part in metric.protocol


def test_few_clips_are_warned_about():
    metric = FrechetVideoDistance(RandomVideoFeatures())
    with pytest.warns(UserWarning) as caught:
        distance(metric, clips(3, 0), clips(3, 1), batch=3)
    said = " ".join(str(w.message) for w in caught)
    assert "n = 1000" in said and "singular" in said


def test_one_clip_has_no_covariance():
    metric = FrechetVideoDistance(RandomVideoFeatures())
    metric.update(clips(2, 0), real=True)
    metric.update(clips(1, 0), real=False)
    with pytest.raises(UserError, match="2 real and 1 generated"):
        metric.compute()


@pytest.mark.parametrize(
    "videos, match",
    [
        (torch.zeros(2, 4, 3, 8, 8), "uint8"),
        (torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 5, 3, 8, 8, dtype=torch.uint8), "4 frames, got 5"),
    ],
)
def test_wrong_videos_are_refused(videos, match):
    metric = FrechetVideoDistance(FirstPixels(4))
    metric.update(clips(2, 0), real=True)
    with pytest.raises(ValueError, match=match):
        metric.update(videos, real=False)


def test_random_features_are_seeded_and_leave_the_global_state_alone():
    before = torch.random.get_rng_state()
    x = clips(3, 0)
    a, b, other = RandomVideoFeatures(1)(x), RandomVideoFeatures(1)(x), RandomVideoFeatures(2)(x)
    frames = RandomFrameFeatures(1)(x.flatten(0, 1))
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert a.shape == (3, RandomVideoFeatures.num_features) and frames.shape == (12, RandomFrameFeatures.num_features)
    assert torch.equal(before, torch.random.get_rng_state())


def test_i3d_from_torchscript_gets_channels_first_and_says_which_file(tmp_path):
    network = I3DFeatures(save_script(FakeI3D(), tmp_path / "i3d.pt"))
    video = clips(2, 0)
    got = network(video)
    assert network.num_features == 7 and got.shape == (2, 7)
    clip = video[1:].transpose(1, 2).float()
    assert torch.equal(got[1:], FakeI3D()(clip, True, True, True))
    assert "i3d.pt (sha256 " in network.protocol and network.name == "i3d_styleganv"


def test_inception_from_torchscript_is_resized_without_antialias(tmp_path):
    network = InceptionFeatures(save_script(FakeInception(), tmp_path / "inception.pt"))
    assert network.num_features == 3
    assert torch.allclose(network(torch.full((2, 3, 40, 50), 255, dtype=torch.uint8)), torch.ones(2, 3))


@pytest.mark.parametrize("kind", [I3DFeatures, InceptionFeatures])
def test_files_that_are_no_networks(kind, tmp_path):
    with pytest.raises(ValueError, match="missing.pt: no such file"):
        kind(tmp_path / "missing.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match="text.pt: not a readable TorchScript"):
        kind(tmp_path / "text.pt").load()
    with pytest.raises(ValueError, match="other.pt: does not work as"):
        kind(save_script(torch.nn.Linear(2, 2), tmp_path / "other.pt")).load()


def test_a_kept_reference_is_read_once_and_gives_the_same_bits(monkeypatch):
    clips = [Clip(str(seed), video(seed), video(seed + 50)) for seed in range(4)]
    fvd, seen = FrechetVideoDistance(RandomVideoFeatures(seed=0)), []
    real = fvd.features
    monkeypatch.setattr(fvd, "features", lambda videos: seen.append(len(videos)) or real(videos))
    numbers = []
    for _ in range(3):
        fvd.reset()
        for clip in clips:
            fvd.add(clip)
        numbers.append(fvd.compute())
        fvd.keep_reference()
    assert numbers[0] == numbers[1] == numbers[2] and sum(seen) == 4 * (2 + 1 + 1)
    fvd.forget_reference()
    fvd.reset()
    assert int(fvd.real_n) == 0


def video(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(seed)).byte()


def test_after_a_reset_clips_may_have_another_length():
    fvd = FrechetVideoDistance()
    for frames in (6, 4):
        fvd.reset()
        for real in (True, False):
            fvd.update(torch.randint(0, 256, (2, frames, 3, 16, 16), dtype=torch.uint8), real=real)
        with pytest.raises(UserError, match=f"must all have {frames} frames, got 5"):
            fvd.update(torch.zeros(1, 5, 3, 16, 16, dtype=torch.uint8), real=False)
