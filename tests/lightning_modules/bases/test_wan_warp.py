"""`warp` over Wan 2.1: y of the first frame's pixels where the control moves them."""

from __future__ import annotations

import torch
from diffusers.pipelines.wan.pipeline_wan_i2v import retrieve_latents

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan
from lightning_modules.conditioning import KNOWN
from lightning_modules.config import Control, Noise, Sampling
from lightning_modules.control.pixels import moved_pixels
from lightning_modules.optimizer import Plan, adamw
from tests.support import wan
from tests.support.modules import data, draw, perturb, trainer, written
from tests.support.same import same

FRAMES, HEIGHT, WIDTH = 9, 32, 48


def warped(*others, lora="attention", **options):
    made = MotionControlModule(
        RandomWan(init_seed=3), RegionWise(min_mask_ratio=0.5), Control([*others, "warp"], lora, 2),
        Noise(dropout=0.5), Sampling(2, guidance=(3.0, 3.0)), **options,
    )  # fmt: skip
    made.plan = Plan(adamw(lr=1e-3))
    return made


def pushed():
    """(1, L, 3, H, W): a box of 16 pixels goes 2 px a frame to the right; the rest stays."""
    control = torch.zeros(1, FRAMES, 3, HEIGHT, WIDTH)
    control[:, :, 2, 8:24, 8:24] = 1
    control[:, :, 0, 12:20, 12:20] = 2.0 * torch.arange(FRAMES)[:, None, None]
    return control


def test_y_is_of_the_moved_pixels_and_its_mask_of_the_cells_that_are_known():
    """In float64, by diffusers' own autoencoder and normalisation; the mask by going through frames and cells."""
    net = warped(lora=None)
    net.configure_model(torch.float64)
    base, frame, control = net.base, draw(1, 3, HEIGHT, WIDTH, seed=1).tanh(), pushed()
    cond = base.condition({"first_frame": frame, "frames": FRAMES}, {}, None)
    steered = net.injections[0].steer(control, cond, base)
    clip, unknown, _ = moved_pixels(frame[0], control[0])
    assert unknown.any() and not torch.equal(clip[8], clip[0])

    config = wan.pipeline(base).vae.config
    values = torch.tensor([config.latents_mean, config.latents_std], dtype=torch.float64)
    mean, std = values.view(2, 1, -1, 1, 1, 1)
    mode = retrieve_latents(base.vae.encode(clip.transpose(0, 1)[None]), sample_mode="argmax")
    latents = ((mode - mean) / std).transpose(1, 2)
    y = steered.parts["y"]
    assert y.shape == (1, 3, 4 + base.channels, HEIGHT // 8, WIDTH // 8)
    assert (y[:, :, 4:] - latents).abs().max() < 1e-12
    for latent in range(3):
        for channel in range(4):
            t = max(0, 4 * latent - 3 + channel)
            for row in range(HEIGHT // 8):
                for column in range(WIDTH // 8):
                    hidden = unknown[t, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].any()
                    assert y[0, latent, channel, row, column] == float(not hidden)
    assert torch.equal(steered.parts[KNOWN], y[:, :, :4].amin(2, keepdim=True))
    assert (cond.parts["y"] - y)[:, 0].abs().max() < 1e-12  # of frame 1 alone, as without
    both = steered.unconditional(base.unconditional).followed_by(steered)
    assert torch.equal(both.parts["y"], torch.cat([y, y]))


def test_without_motion_every_frame_is_known_and_is_the_first():
    net = warped(lora=None)
    net.configure_model(torch.float64)
    frame = draw(1, 3, HEIGHT, WIDTH, seed=1).tanh()
    cond = net.base.condition({"first_frame": frame, "frames": FRAMES}, {}, None)
    y = net.injections[0].steer(0 * pushed(), cond, net.base).parts["y"]
    still = net.base.normalise(net.base.encode(frame[:, None].expand(-1, FRAMES, -1, -1, -1)).mean)
    assert (y[:, :, :4] == 1).all() and (y[:, :, 4:] - still).abs().max() < 1e-12


def test_gradients_reach_its_marks_and_a_resume_has_the_same_bits(tmp_path):
    clips, batch = written(tmp_path / "clips", frames=5, clips=4, val_clips=2)
    net = warped("modulation")
    net.log = lambda *args, **kwargs: None
    net.configure_model()
    perturb(net).training_step(batch, 0).backward()
    assert net.optimized()["injections.1.unknown.weight"].grad.abs().max() > 0
    for folder, cuts in (("whole", [2]), ("parts", [1, 2])):
        (tmp_path / folder).mkdir()
        for steps in cuts:
            path = tmp_path / folder / "last.ckpt"
            again = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
            trainer(tmp_path / folder, steps).fit(
                warped("modulation"), data(clips, frames=5, clips=4, val_clips=2), **again
            )
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert one["state_dict"]["injections.1.unknown.weight"].any()
