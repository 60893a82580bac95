"""`latent` and `latent_soft`: features of the first latent frame along the control's tracks, as of Wan-Move and ATI."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conditions import DenseFlow, RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import SVD, RandomCogVideoX, RandomWan
from lightning_modules.bases.wan.network import joined
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.control.latent import Latent, LatentSoft
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.sampler import guided
from remoco.common.errors import UserError
from tests.support import wan, wan_peers
from tests.support.modules import data, draw, perturb, trainer, written
from tests.support.same import same

SETS = [f"{shape}.{kind}" for shape in wan_peers.SIZES for kind in ("apart", "crossing")]


@pytest.fixture(scope="module")
def recorded():
    return wan_peers.recorded()


def spread(cells: torch.Tensor) -> torch.Tensor:
    """(..., h, w) -> (..., H, W): a cell's value for all its pixels."""
    return cells.repeat_interleave(8, -1).repeat_interleave(8, -2)


def control_of(recorded, name: str, mask: torch.Tensor) -> torch.Tensor:
    """(1, L, 3, H, W), each cell its own region."""
    way = spread(recorded[f"{name}.way"])
    return torch.cat([way, spread(mask.float()).expand(len(way), 1, -1, -1)], 1)[None]


def condition_of(recorded, name: str) -> torch.Tensor:
    """(1, F, 4 + C, h, w) float64: mask and latents."""
    y = recorded[f"{name}.y"].double().transpose(0, 1)[None]
    return joined(y, wan_peers.FRAMES, wan_peers.TIME)


@pytest.mark.parametrize("name", SETS)
def test_cells_are_copied_as_wan_moves_own_functions_do(recorded, name):
    """With and without what stays, to the bit; the mask channels are untouched."""
    y, mask = condition_of(recorded, name), recorded[f"{name}.mask"]
    for brush, theirs in ((mask, "wan_move"), (torch.ones_like(mask), "wan_move.tracks_alone")):
        edited = Latent().edited(y, 4, control_of(recorded, name, brush), 8, 4)[0]
        wanted = recorded[f"{name}.{theirs}"].transpose(0, 1)
        assert torch.equal(edited[:, 4:], wanted) and (wanted - y[0, :, 4:]).abs().max() > 1
        assert torch.equal(edited[:, :4], y[0, :, :4])


@pytest.mark.parametrize("name", SETS)
def test_features_are_mixed_as_atis_own_function_does(recorded, name):
    """Latents and mask channels."""
    y = condition_of(recorded, name)
    edited = LatentSoft().edited(y, 4, control_of(recorded, name, recorded[f"{name}.mask"]), 8, 4)[0]
    wanted = recorded[f"{name}.ati"].transpose(0, 1)
    torch.testing.assert_close(edited, wanted, rtol=0, atol=1e-9)
    assert (wanted - y[0]).abs().max() > 0.3


@pytest.mark.parametrize("peer", ["wan_move", "ati"])
def test_the_mask_of_81_frames_is_theirs(recorded, peer):
    known = recorded[f"known.{peer}"].transpose(0, 1)[None]
    assert torch.equal(joined(torch.zeros(1, 21, 4, 2, 3), 81, 4)[:, :, :4], known)


def test_a_region_goes_where_its_track_does_and_the_rest_stays_or_is_free():
    """One region of 16 x 16 on cells (1, 1) to (2, 2) moves by a cell each latent frame; the brush frees row 5."""
    y = joined(draw(1, 3, 2, 6, 8), 9, 4)
    brush = np.zeros((48, 64))
    brush[40:] = 1
    control = RegionWise(16).draw([[(16, 16), (32, 8)]], brush, 9, 48, 64)[None]
    out, before = Latent().edited(y, 4, control, 8, 4)[0, :, 4:], y[0, :, 4:]
    for j in (1, 2):
        wanted = before[:1].repeat(3, 1, 1, 1)[j]  # what is outside of the brush stays
        wanted[:, 5] = before[j, :, 5]  # free
        wanted[:, 1:3, 1:3] = before[j, :, 1:3, 1:3]  # uncovered
        rows = slice(1, 3) if j == 1 else slice(0, 2)  # 4 px up are still in the cell: floor(12 - 4) / 8
        wanted[:, rows, 1 + j : 3 + j] = before[0, :, 1:3, 1:3]
        assert torch.equal(out[j], wanted)
    assert torch.equal(out[0], before[0])


def test_what_leaves_the_frame_is_not_copied_and_nothing_moves_without_a_control():
    y = joined(draw(1, 3, 2, 6, 8), 9, 4)
    brush = np.ones((48, 64))
    gone = RegionWise(8).draw([[(4, 4), (-300, 4)]], brush, 9, 48, 64)[None]
    assert torch.equal(Latent().edited(y, 4, gone, 8, 4), y)
    for edit in (Latent(), LatentSoft()):
        assert torch.equal(edit.edited(y, 4, RegionWise(8).draw([], brush, 9, 48, 64)[None], 8, 4), y)
    held = Latent().edited(y, 4, RegionWise(8).draw([], None, 9, 48, 64)[None], 8, 4)
    assert torch.equal(held[:, :, 4:], y[:, :1, 4:].expand(-1, 3, -1, -1, -1))


@pytest.mark.parametrize("k", [8, 16])
def test_a_drawn_region_is_as_many_tracks_as_it_has_cells(k):
    """Wherever it is drawn."""
    from lightning_modules.control.latent import ways

    for x in range(k // 2, 64 - k // 2, 3):
        control = RegionWise(k).draw([[(x, 20), (x + 9, 20)]], None, 9, 48, 64)[None]
        assert ways(control, 8)[1].sum() == (k // 8) ** 2


def module(*kinds, lora="attention", dropout=0.0, **sampling):
    return MotionControlModule(
        RandomWan("tiny_i2v", 3), RegionWise(min_mask_ratio=0.5), Control([*kinds], lora, 2), Noise(dropout=dropout),
        Sampling(**sampling),
    )  # fmt: skip


def asked(net, batch=2):
    """Noisy latents and conditioning of clips of 9 frames, with a control."""
    frame = draw(batch, 3, 32, 48, seed=1).tanh()
    texts = {"text": draw(batch, 5, 16, seed=8), "negative_text": draw(batch, 5, 16, seed=9)}
    cond = net.base.condition({"first_frame": frame, "frames": 9, **texts}, {}, None)
    control = RegionWise(8).draw([[(12, 12), (30, 20)]], None, 9, 32, 48)
    x = draw(batch, 3, 4, *net.base.grid.size(32, 48), seed=3)
    return x, cond.__class__(cond.parts, control.expand(batch, -1, -1, -1, -1))


@pytest.mark.parametrize("kinds", [("latent",), ("modulation", "latent"), ("latent_soft",)])
def test_guidance_has_the_motion_where_its_authors_have_it(kinds):
    """Wan-Move's other branch has the condition without motion; ATI's has it. A modulation is in both."""
    net = module(*kinds)
    net.configure_model(torch.float64)
    perturb(net.double())
    x, plain = asked(net)
    cond = net.steer(plain)
    y, other = cond.parts["y"], plain.parts["y"] if "latent" in kinds else cond.parts["y"]
    assert not torch.equal(y, plain.parts["y"]) and torch.equal(plain.parts["y"], net.base.condition(
        {"first_frame": draw(2, 3, 32, 48, seed=1).tanh(), "frames": 9}, {}, None).parts["y"])  # fmt: skip
    sigma, scale = torch.tensor([2.0, 0.7]).double(), torch.full((3,), 5.0).double()
    with torch.no_grad(), wan.lifted():
        found = guided(net.denoiser, cond, scale)(x, sigma)
        branches = [
            net.denoiser(x, sigma, cond.__class__({**plain.parts, "text": text, "y": latents}))
            for text, latents in ((plain.parts["negative_text"], other), (plain.parts["text"], y))
        ]
    torch.testing.assert_close(found, branches[0] + 5 * (branches[1] - branches[0]), rtol=0, atol=1e-9)


def test_a_clip_without_its_text_is_trained_as_the_other_branch():
    net = module("latent")
    net.configure_model(torch.float64)
    x, plain = asked(net)
    cond = net.steer(plain)
    dropped = cond.dropping(torch.tensor([[False], [True]]), net.base.conditionings)
    time = torch.tensor([900.0, 30.0]).double()
    empty = plain.__class__({**plain.parts, "text": net.base.empty_text(2)})
    with torch.no_grad():
        found, kept, other = (net.base.predict(x, time, each) for each in (dropped, cond, empty))
    assert torch.equal(found[1], kept[1]) and torch.equal(found[0], other[0]) and not torch.equal(kept[0], other[0])


def test_it_trains_resumes_and_follows_what_is_drawn(tmp_path):
    """LoRA alone is trained; a resume has the same bits; another stroke gives another clip."""

    def fresh():
        made = module("latent", dropout=0.5, steps=2, guidance=(3.0, 3.0))
        made.plan = Plan(adamw(lr=1e-2))
        return made

    clips = {"frames": 5, "clips": 4, "val_clips": 2}
    for folder, cuts in (("whole", [3]), ("parts", [1, 3])):
        (tmp_path / folder).mkdir()
        for steps in cuts:
            path = tmp_path / folder / "last.ckpt"
            again = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
            trainer(tmp_path / folder, steps).fit(fresh(), data(tmp_path, **clips), **again)
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert one["remoco"]["architecture"]["injection"] == ["latent"]
    assert all(".lora_" in name for name in one["state_dict"])
    pipe = MotionControlPipeline.from_checkpoint(tmp_path / "whole" / "last.ckpt")
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    call = {"height": 32, "width": 48, "output_type": "latent"}
    ways = ((40, 9), (9, 30), (40, 9))
    made = [pipe(image, [[(9, 9), end]], **call).frames for end in ways]
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])
    pipe.save_pretrained(tmp_path / "saved")
    again = MotionControlPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(image, [[(9, 9), ways[0]]], **call).frames, made[0])


def test_beside_modulation_all_that_is_trained_has_a_gradient(tmp_path):
    net = module("modulation", "latent")
    net.configure_model()
    net.log = lambda *_, **__: None
    _, batch = written(tmp_path, frames=5, clips=4, val_clips=2)
    perturb(net).training_step(batch, 0).backward()
    assert [name for name, p in net.optimized().items() if p.grad is None or not p.grad.any()] == []
    assert not list(net.injections[1].parameters())


@pytest.mark.parametrize("kind", ["latent", "latent_soft"])
def test_what_it_does_not_fit_is_one_line(kind):
    """Before anything is built."""
    cases = [
        (base, RegionWise(), rf"^control\.injection: {kind} writes into .*{name} here has none; expected Wan 2\.1")
        for base, name in (
            (RandomWan("tiny_ti2v"), "RandomWan"), (RandomCogVideoX(), "RandomCogVideoX"), (SVD("nowhere"), "SVD"),
        )
    ]  # fmt: skip
    cases += [
        (RandomWan(), DenseFlow(), rf"^model\.condition: {kind} copies along tracks and a motion mask"),
        (
            RandomWan(),
            RegionWise(motion_mask=False),
            rf"^model\.condition: {kind} copies along tracks and a motion mask",
        ),
        (RandomWan(), RegionWise(4), r"^model\.condition: region_size is 4, expected at least 8"),
    ]
    for base, condition, said in cases:
        with pytest.raises(UserError, match=said) as caught:
            MotionControlModule(base, condition, Control([kind], None))
        assert "\n" not in str(caught.value) and "object at" not in str(caught.value)


@pytest.mark.parametrize("kinds", [("warp", "latent"), ("latent", "modulation", "warp"), ("latent", "latent_soft")])
def test_two_that_write_into_the_same_condition_are_one_line(kinds):
    """The second would drop what the first wrote, or the gradients of its weights."""
    with pytest.raises(UserError, match=r"^control\.injection is \[.*expected one at most of warp, latent") as caught:
        module(*kinds)
    assert "\n" not in str(caught.value)


def test_a_training_of_nothing_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^model\.control: nothing is trained .*\['latent'\] and lora null"):
        trainer(tmp_path, 1).fit(module("latent", lora=None), data(tmp_path, frames=5, clips=4, val_clips=2))
