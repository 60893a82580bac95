"""Clips on cards with less memory than a network: blocks in the host's memory, parts of the VAE, and what is chosen."""

import re
from itertools import accumulate

import numpy as np
import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from safetensors.torch import save_file

from callbacks.strips import write_png
from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomCogVideoX, RandomWan, Sprites
from lightning_modules.config import Control, Sampling
from lightning_modules.longer import planned
from lightning_modules.memory import GIB, Counted, Held, Plan, count, fake_weights, usable
from lightning_modules.offload import Blocks
from lightning_modules.pipeline import MotionControlPipeline
from remoco.cli import main
from remoco.common.errors import UserError
from remoco.generate import Clip
from tests.support.modules import perturb
from tests.support.places import REPO

BASES = {
    "svd": lambda: Sprites("tiny", latents="vae"),
    "wan": lambda: RandomWan("tiny_i2v"),
    "ti2v": lambda: RandomWan("tiny_ti2v"),
    "a14b": lambda: RandomWan("tiny_a14b", expert="high"),
    "cogvideox": lambda: RandomCogVideoX("tiny_i2v"),
}
TRACK = [[(20, 20), (40, 44)]]


def made(name: str, dtype: torch.dtype = torch.float32, lora: str | None = "attention") -> MotionControlPipeline:
    """A pipeline over a tiny base, whose injections and LoRA have an effect."""
    control = Control(injection=["modulation"], lora=lora)
    net = MotionControlModule(BASES[name](), RegionWise(), control, sampling=Sampling(steps=2, guidance=(2.0, 2.0)))
    net.configure_model(dtype)
    pipe = MotionControlPipeline(perturb(net))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: MotionControlPipeline, output_type: str = "latent") -> torch.Tensor:
    """What it samples of one image and stroke."""
    base = pipe.module.base
    frames, height, width = base.usual() if base.grid.only else (9, 64, 64)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pipe(image, TRACK, num_frames=frames, height=height, width=width, output_type=output_type).frames


@pytest.fixture
def offloaded(monkeypatch):
    """In a pass, weights that are off the device are not numbers: a stand-in for a device, on the CPU.

    Yields the number of groups that were on it at a time.
    """
    on, stored, seen, passing = set(), {}, [], []

    def weights(group):
        return [p for module in group.modules for p in module.parameters()]

    def offload(group):
        if passing:
            on.discard(id(group))
            for p in weights(group):
                stored[p] = p.data
                p.data = torch.full_like(p.data, torch.nan)

    def onload(group):
        if not weights(group):  # of the root
            return
        on.add(id(group))
        seen.append(len(on))
        for p in weights(group):
            p.data = stored.pop(p)

    def forward(self, call):
        passing.append(True)
        for p in self.blocks.parameters():
            stored[p] = p.data
            p.data = torch.full_like(p.data, torch.nan)
        try:
            return call()
        finally:
            passing.clear()
            for p in self.blocks.parameters():
                p.data = stored.pop(p)

    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(Blocks, "forward", forward)
    return seen


@pytest.mark.parametrize("name", BASES)
@pytest.mark.filterwarnings("ignore:the base has two experts")
def test_blocks_in_host_memory_give_the_same_bits(name, offloaded):
    """Injections, LoRA and all else of a block are used while it is on the device, and one block is at a time."""
    pipe = made(name)
    before = latents(pipe)
    assert not offloaded
    pipe.enable_group_offload("cpu")
    assert torch.equal(latents(pipe), before)
    blocks = sum(len(each) for each in pipe.module.base.groups().values())
    assert set(offloaded) == {1} and len(offloaded) >= 2 * blocks // (2 if name == "a14b" else 1)
    offloaded.clear()
    pipe.to("cpu")
    assert torch.equal(latents(pipe), before) and not offloaded and "predict" not in vars(pipe.module.base)


def test_a_pass_that_fails_leaves_nothing_on_the_device(monkeypatch):
    """Else what comes back of merged LoRA would go to the device's copy of a block, which is then dropped."""
    on, onload, offload = set(), ModuleGroup.onload_, ModuleGroup.offload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: (on.add(id(group)), onload(group)))
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: (on.discard(id(group)), offload(group)))
    pipe = made("wan")
    pipe.enable_group_offload("cpu")

    def full(*arguments):
        assert on
        raise torch.OutOfMemoryError("full")

    hook = pipe.module.base.transformer.blocks[1].attn1.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        latents(pipe)
    hook.remove()
    assert not on


def test_a_weight_that_is_read_off_the_device_shows(offloaded):
    """The stand-in for a device is one: without the hooks of a block its output is no number."""
    pipe = made("wan")
    pipe.enable_group_offload("cpu")
    pipe.module.base.transformer.blocks[0]._diffusers_hook.remove_hook("group_offloading")
    with pytest.raises(UserError, match="holds NaN or infinite"):
        latents(pipe)


def test_lora_files_and_dtypes_reach_blocks_in_host_memory(tmp_path, offloaded):
    plain, grouped = made("wan"), made("wan")
    grouped.enable_group_offload("cpu")
    layer = "transformer.blocks.0.attn1.to_q"
    width = plain.module.base.transformer.blocks[0].attn1.to_q.in_features
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    bare = latents(plain)
    for pipe in (plain, grouped):
        pipe.load_lora_weights(tmp_path / "lora.safetensors")
    assert torch.equal(latents(grouped), latents(plain)) and not torch.equal(latents(plain), bare)
    for pipe in (plain, grouped):
        pipe.to(dtype=torch.bfloat16)
    assert torch.equal(latents(grouped), latents(plain)) and grouped.module.base.grouped


@pytest.mark.gpu
@pytest.mark.parametrize("name", BASES)
@pytest.mark.filterwarnings("ignore:the base has two experts")
def test_blocks_come_to_a_gpu_early(name):
    """Not run yet: no GPU was at hand."""
    pipe = made(name, torch.bfloat16)
    pipe.to("cuda")
    before = latents(pipe)
    pipe.enable_group_offload("cuda")
    assert torch.equal(latents(pipe), before)
    assert {p.device.type for blocks in pipe.module.base.groups().values() for p in blocks[-1].parameters()} == {"cpu"}


def test_guidance_in_two_passes():
    pipe = made("svd", torch.float64)
    both, calls, plain = latents(pipe), [], pipe.module.base.predict

    def predict(noisy, time, cond):
        calls.append(len(noisy))
        return plain(noisy, time, cond)

    pipe.module.base.predict = predict
    pipe.module.base.split = True
    torch.testing.assert_close(latents(pipe), both, rtol=0, atol=1e-9)
    assert calls == [1] * 4


def small_tiles(base, monkeypatch):
    """Tiles of 32 pixels, 24 apart: diffusers' own are larger than a tiny clip."""
    tiles = {"sample_min": 32, "sample_stride": 24, "latent_min": 32 // base.grid.space}
    for side in ("height", "width"):
        for kind, size in tiles.items():
            if hasattr(base.vae, f"tile_{kind}_{side}"):
                monkeypatch.setattr(base.vae, f"tile_{kind}_{side}", size)
        if hasattr(base.vae, f"tile_overlap_factor_{side}"):
            monkeypatch.setattr(base.vae, f"tile_overlap_factor_{side}", 0.25)


@pytest.mark.parametrize("name", ["svd", "wan", pytest.param("cogvideox", marks=pytest.mark.slow)])
def test_parts_are_counted_from_above(name, monkeypatch):
    """One part and the clips around it are no less than all parts with what they leave, and less than the whole."""
    pipe = made(name, lora=None)
    base = pipe.module.base
    if name != "svd":
        small_tiles(base, monkeypatch)
    clip = base.usual() if base.grid.only else (9, 128, 128)
    part = base.vae_parts[-1]
    counted = count(pipe.module, *clip).clip
    with fake_weights(pipe.module) as known:
        base.work_in(part)
        x = torch.empty(1, base.grid.latents(clip[0]), base.channels, *base.grid.size(*clip[1:]))
        with torch.no_grad(), Held(known=known) as held:
            base.decode(x)
        base.work_in(None)
    assert held.peak <= counted[part] < counted[None]


@pytest.mark.parametrize("name", ["svd", "wan", "ti2v", "cogvideox"])
def test_every_base_has_a_vae_that_works_in_parts(name, monkeypatch):
    """Where a clip is larger than a part it is decoded in parts, and back as a whole to the same bits."""
    base = made(name).module.base
    if name != "svd":
        small_tiles(base, monkeypatch)
    frames, height, width = base.usual() if base.grid.only else (9, 64, 64)
    x = torch.randn(1, base.grid.latents(frames), base.channels, *base.grid.size(height, width))
    whole = base.decode(x)
    for part in base.vae_parts:
        base.work_in(part)
        parts = base.decode(x)
        assert parts.shape == whole.shape and not torch.equal(parts, whole) and parts.isfinite().all()
    base.work_in(None)
    assert torch.equal(base.decode(x), whole)


# Counting


def test_what_is_alive_at_once_is_counted():
    with fake_weights(torch.nn.Linear(256, 256)) as known, Held(known=known) as held:
        a = torch.empty(1000, dtype=torch.float32)
        b = a + 1  # 8000 bytes
        c = b.view(10, 100)
        del a, b
        d = torch.empty(500)
        assert held.live == 6000 and held.peak == 8000
        del c, d
    assert held.live == 0 and [tuple(each.shape) for each in known] == [(256, 256), (256,)]


@pytest.mark.parametrize(
    "name", [name if name in ("wan", "a14b") else pytest.param(name, marks=pytest.mark.slow) for name in BASES]
)
def test_a_count_changes_nothing(name):
    """It takes no memory, and weights and their tensors are those of before; a longer or wider clip takes more."""
    pipe = made(name)
    base = pipe.module.base
    before = {name: (id(p), p.data_ptr()) for name, p in [*base.named_parameters(), *base.named_buffers()]}
    sizes = [base.usual()] if base.grid.only else [(5, 64, 64)] + [(9, 64, 128)] * (name == "wan")
    small, *larger = [count(pipe.module, *size) for size in sizes]
    assert {name: (id(p), p.data_ptr()) for name, p in [*base.named_parameters(), *base.named_buffers()]} == before
    for other in larger:
        assert other.step > small.step and other.clip[None] > small.clip[None] and other.blocks == small.blocks
    assert small.branch <= small.step and small.merged > 0 and small.pair <= small.blocks
    assert small.rest + small.blocks + small.beside == sum(p.nbytes for p in pipe.module.parameters())
    assert (small.waiting > 0) == (name == "a14b")


def test_a_count_does_not_depend_on_how_the_vae_works():
    pipe, clip = made("svd"), (9, 64, 64)
    base, counted = pipe.module.base, count(pipe.module, *clip)
    base.work_in("windows of 4 frames")
    assert count(pipe.module, *clip) == counted and base.vae_part == "windows of 4 frames" and base.at_once == 4
    base.decode_chunk = 2  # as a configuration says
    assert base.at_once == 2
    base.work_in(None)
    assert base.at_once == 2 and count(pipe.module, *clip).clip[None] < counted.clip[None]


@pytest.mark.slow
def test_a_longer_clip_is_counted_as_it_is_made():
    """Windows are denoised one at a time, with each one's motion kept; parts are clips of the trained length."""
    pipe, net = made("svd"), made("svd").module
    plans = {way: planned(net.base, 8, 32, way, None) for way in (None, "windows", "continue")}
    whole, windows, parts = (count(net, 32, 64, 64, plan) for plan in plans.values())
    trained = count(net, 8, 64, 64)
    assert trained.step == parts.step < min(windows.step, whole.step) and windows.clip[None] == whole.clip[None]
    assert parts.clip[None] == trained.clip[None] + 3 * 4 * 3 * 32 * 64 * 64 < whole.clip[None]
    pipe.sampling["num_frames"] = 8
    said = pipe.fit_memory(8, "cpu", (32, 64, 64), "continue")
    assert said == f"everything on the device: {parts.need(Plan()) / GIB:.1f} of 8 GiB counted for 32 x 64 x 64"


@pytest.mark.slow
def test_a_base_of_one_length_has_longer_clips_within_a_memory():
    pipe = made("cogvideox")
    frames, height, width = pipe.module.base.usual()
    pipe.sampling["num_frames"] = frames
    assert "everything on the device" in pipe.fit_memory(8, "cpu", (2 * frames - 1, height, width), "continue")
    with pytest.raises(UserError, match=f"^frames is {2 * frames - 1}, expected {frames}"):
        pipe.fit_memory(8, "cpu", (2 * frames - 1, height, width))


def test_where_nothing_fits_all_stays_where_it_was():
    pipe = made("svd")
    pipe.enable_group_offload("cpu")
    with pytest.raises(UserError, match="^memory is 0.5 GiB"):
        pipe.fit_memory(0.5, "cpu", (2, 64, 64))
    assert pipe.module.base.grouped and pipe._offloads and "stage" not in vars(pipe.module.base)


def test_a_side_that_is_named_beside_the_only_size():
    assert Clip(height=480).largest((49, 480, 720), 16, (480, 720)) == (49, 480, 720)
    assert Clip(height=480).largest((16, 320, 512), 64) == (16, 480, 896)


def test_an_activation_is_counted_as_it_is():
    """The decoder's worst moment is near what the CPU's allocator sees."""
    from torch.profiler import ProfilerActivity, profile

    pipe = made("svd")
    base, x = pipe.module.base, torch.randn(1, 9, 4, 8, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        base.decode(x)
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    with fake_weights(pipe.module) as known, Held(known=known) as held, torch.no_grad():
        base.decode(torch.empty(x.shape))
    assert peak / 1.5 < held.peak < 1.5 * peak  # kernels take scratch memory by the CPU


MADE_UP = Counted(
    rest=GIB, blocks=20 * GIB, pair=GIB, waiting=0, beside=3 * GIB, merged=4 * GIB, step=6 * GIB, branch=3 * GIB,
    clip={None: 8 * GIB, "tiles": 2 * GIB},
)  # fmt: skip


@pytest.mark.parametrize(
    ("card", "plan", "need"),
    [
        (80, Plan(), 34),  # 21 + 3 + 4 + 6
        (37, Plan(offload=True), 32),  # 21 + 3 + 8: nothing has to be kept on the device beside the VAE
        (35, Plan(groups=True), 12),  # 1 + 3 + 8
        (12, Plan(offload=True, groups=True, part="tiles"), 8),  # 1 + 1 + 6
        (8, Plan(offload=True, split=True, groups=True, part="tiles"), 6),  # 1 + 3 + 2 while decoding
    ],
)
def test_what_is_chosen(card, plan, need):
    assert MADE_UP.pick(card) == plan and MADE_UP.need(plan) == need * GIB <= usable(card)


def test_nothing_that_fits_is_one_line():
    said = r"^memory is 7 GiB, expected at least 7\.3 by count for this clip; .*takes less$"
    with pytest.raises(UserError, match=said):
        MADE_UP.pick(7)
    with pytest.raises(UserError, match="memory is 7.2"):
        MADE_UP.pick(7.2)
    assert MADE_UP.pick(7.3)


def test_a_pipeline_fits_a_card_and_says_how(offloaded, monkeypatch):
    """A tiny network beside the reserve of half a GiB; the picture is the same as long as no part is chosen."""
    pipe, clip = made("svd"), (9, 64, 64)
    before, counted = latents(pipe, "pt"), count(pipe.module, *clip)
    monkeypatch.setattr("lightning_modules.memory.count", lambda *arguments: counted)  # once is enough
    assert pipe.fit_memory(8, "cpu", clip).startswith("everything on the device: 0.1 of 8 GiB counted for 9 x 64 x 64")

    def card(plan):
        return (counted.need(plan) / GIB + 0.5) / 0.9 + 1e-9

    groups = Plan(groups=True)
    if counted.pick(card(groups)) == groups:
        assert pipe.fit_memory(card(groups), "cpu", clip).startswith("blocks in host memory: ")
        assert torch.equal(latents(pipe, "pt"), before) and offloaded
    least = min(counted.plans(), key=counted.need)
    pipe.fit_memory(card(least), "cpu", clip)
    assert pipe.module.base.vae_part == least.part is not None and not torch.equal(latents(pipe, "pt"), before)
    with pytest.raises(UserError, match="expected at least 0.6 by count"):
        pipe.fit_memory(0.5, "cpu", clip)
    pipe.fit_memory(8, "cpu", clip)
    assert pipe.module.base.vae_part is None and not pipe.module.base.grouped
    assert torch.equal(latents(pipe, "pt"), before)


def test_generate_keeps_within_the_memory_that_is_named(tmp_path, capsys):
    """The command of docs/memory.md: the same video, and a line that says what was chosen; or one line of error."""
    words = re.search(r"^remoco (generate embedded .*)$", (REPO / "docs" / "memory.md").read_text(), re.M)[1].split()
    write_png(tmp_path / "image.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "tracks.json").write_text('{"traj_key_points": [[[20, 20], [40, 44]]]}')
    words = [str(tmp_path / word) if "." in word else word for word in words]
    command = [*words, "--device", "cpu", "--steps", "1", "--num-frames", "3", "--height", "64", "--width", "64"]
    assert main(command) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--memory: ")]
    assert len(said) == 1 and re.fullmatch(r"--memory: .+: \d\.\d of 8 GiB counted for 3 x 64 x 64", said[0])
    video = (tmp_path / "clip.mp4").read_bytes()
    at = command.index("--memory")
    assert main(command[:at] + command[at + 2 :]) == 0 and (tmp_path / "clip.mp4").read_bytes() == video
    capsys.readouterr()
    assert main([*command[:at], "--memory", "0.5", *command[at + 2 :]]) == 2
    assert "error: memory is 0.5 GiB, expected at least 0." in capsys.readouterr().err.splitlines()[-1]
    assert main([*command, "--offload"]) == 2
    assert "--offload: expected no such flag beside --memory" in capsys.readouterr().err
