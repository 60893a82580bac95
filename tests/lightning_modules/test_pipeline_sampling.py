"""The pipeline's sampler against the training's, batches, guidance in two passes, chunks of the VAE, callbacks."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from conditions import DenseFlow, GaussianFiltered, RegionWise, motion_bucket
from conditions.strokes import interpolate_track
from lightning_modules.bases.svd.network import conditioning, window_starts
from lightning_modules.conditioning import to_uint8
from lightning_modules.control.lora import lora_layers
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.base import Denoiser
from lightning_modules.process.edm import karras_sigmas
from lightning_modules.process.sampler import euler_sample
from tests.support.modules import module, perturb
from tests.support.nets import random_svd

FRAMES = 4
SHORT = dict(num_frames=FRAMES, num_inference_steps=2)
IMAGES = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in range(3)]
TRACKS = [[[(20, 20), (30, 24)]], [[(40, 40), (30, 24), (9, 9)]], [[(5, 50)]]]


def made(**changes) -> MotionControlPipeline:
    net = module(**changes)
    net.configure_model(torch.float32)
    return MotionControlPipeline(perturb(net))


@pytest.fixture(scope="module")
def pipe() -> MotionControlPipeline:
    return made()


@pytest.fixture(scope="module")
def exact() -> MotionControlPipeline:
    pipe = made()
    pipe.module.double()
    return pipe


@pytest.mark.parametrize("count, seed", [(1, 0), (3, 7)])
def test_equals_the_training_sampler_to_the_bit(count, seed):
    pipe = made(seed=seed)
    net = pipe.module
    flow = 9 * torch.randn(1, FRAMES, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    batch = {
        "key": ["a"] * count,
        "position": torch.zeros(count, dtype=torch.int64),
        "first_frame": torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in IMAGES[:count]]),
        "flow": flow.expand(count, -1, -1, -1, -1),
        "visibility": torch.ones(count, FRAMES, 64, 64, dtype=torch.bool),
        "fps": torch.full((count,), 8.0),
    }
    ours = pipe(
        IMAGES[:count],
        control=list(net.draw_control(batch)),
        seed=[seed] * count,
        motion_bucket_id=float(motion_bucket(flow)[0]),
        num_frames=FRAMES,
        output_type="pt",
    )
    assert torch.equal(ours.frames, (net.sample(batch, net.draw_control(batch)) + 1) / 2)


@pytest.mark.parametrize(
    "condition", [RegionWise(8), RegionWise(8, motion_mask=False), DenseFlow(8), GaussianFiltered(8)]
)
def test_a_drawing_has_its_own_motion_bucket_where_that_is_asked_for(exact, monkeypatch, condition):
    """Each of a batch its own, whatever is beside it, and however the condition stores it."""
    monkeypatch.setattr(exact.module, "condition", condition)
    brush = np.zeros((64, 64), bool)
    brush[10:50, 10:50] = True
    drawn = dict(image=IMAGES, tracks=TRACKS, brush=[brush, None, brush], output_type="latent", **SHORT)
    lengths = [np.linalg.norm(interpolate_track(np.array(track[0]), FRAMES) - track[0][0], axis=1) for track in TRACKS]
    buckets = [length.mean() * area / 64**2 for length, area in zip(lengths, (40 * 40, 8 * 8, 40 * 40))]
    assert buckets[0] > buckets[1] > buckets[2] == 0

    def one(index, bucket):
        own = dict(image=IMAGES[index], tracks=TRACKS[index], brush=drawn["brush"][index], seed=index)
        return exact(**own, output_type="latent", motion_bucket_id=bucket, **SHORT).frames[0]

    by_default, told = exact(**drawn).frames, exact(**drawn, motion_bucket_id="drawing").frames
    torch.testing.assert_close(by_default[0], one(0, 17), rtol=0, atol=1e-9)
    assert not torch.allclose(told[0], by_default[0], rtol=0, atol=1e-5)
    for index, bucket in enumerate(buckets):
        torch.testing.assert_close(told[index], one(index, bucket), rtol=0, atol=1e-6)  # the bucket is float32
        torch.testing.assert_close(told[index], one(index, "drawing"), rtol=0, atol=1e-9)
    said = exact.module.sampling.but(inputs={"motion_bucket_id": "drawing"})
    monkeypatch.setattr(exact.module, "sampling", said)
    torch.testing.assert_close(exact(**drawn).frames, told, rtol=0, atol=1e-9)
    torch.testing.assert_close(exact(**drawn, motion_bucket_id=17).frames, by_default, rtol=0, atol=1e-9)


def test_merged_and_batched_otherwise_is_the_same_in_float64(exact, monkeypatch):
    """Both at once, one by one, merged and not; and no sample is another's noise."""

    def latents(*arguments, **options):
        return exact(*arguments, output_type="latent", **SHORT, **options).frames

    assert len(lora_layers(exact.module.base.unet)) > 5
    together = latents(IMAGES, TRACKS, seed=5)
    assert together.dtype == torch.float64 and together.shape[:2] == (3, FRAMES)
    alone = torch.cat([latents(*pair, seed=5 + index) for index, pair in enumerate(zip(IMAGES, TRACKS))])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)
    with monkeypatch.context() as unmerged:
        unmerged.setattr("lightning_modules.networks.merged_lora", lambda *arguments: nullcontext())
        apart = latents(IMAGES, TRACKS, seed=5)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-9)
    assert not torch.equal(apart, together)  # merging was done, and undone
    torch.testing.assert_close(latents(IMAGES[::-1], TRACKS[::-1], seed=[7, 6, 5]).flip(0), together, rtol=0, atol=1e-9)
    same = latents([IMAGES[0]] * 2, [TRACKS[0]] * 2, seed=5)
    assert (same[0] - same[1]).abs().mean() > 0.1


def test_guidance_in_two_passes_where_memory_is_short(exact):
    """A device that holds one branch: refused once, then one after the other, the same to 1e-9."""
    net, tried = exact.module, []

    class Small(Denoiser):
        def __call__(self, x, sigma, cond):
            tried.append(len(x))
            if len(x) > 1:
                raise torch.OutOfMemoryError("out of memory")
            return net.denoiser(x, sigma, cond)

    generator = torch.Generator().manual_seed(0)
    cond = conditioning(
        torch.randn(1, 192, 8, 8, generator=generator, dtype=torch.float64),
        torch.randn(1, 1, 32, generator=generator, dtype=torch.float64),
        torch.tensor([[8.0, 17.0, 0.02]], dtype=torch.float64),
    )
    noise = torch.randn(1, FRAMES, 192, 8, 8, generator=generator, dtype=torch.float64)
    net.injections[0].set(net.motion_encoder(torch.randn(1, FRAMES, 3, 64, 64, generator=generator).double()))
    with torch.no_grad():
        one, two = (
            euler_sample(denoiser, noise, cond, steps=3) for denoiser in (net.denoiser, Small(net.base, net.process))
        )
    net.injections[0].set(None)
    assert tried == [2, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)


def test_motion_is_encoded_once_per_clip(pipe, monkeypatch):
    calls = []
    places = [*pipe.module.injections[0].down, *pipe.module.injections[0].up]
    for part in (pipe.module.motion_encoder, *(place.gamma for place in places), *(place.beta for place in places)):
        part.register_forward_hook(lambda module, args, out: calls.append(id(module)))
    pipe(IMAGES[0], TRACKS[0], num_frames=FRAMES, num_inference_steps=5)
    assert len(calls) == len(set(calls)) == 1 + 2 * len(places)
    assert pipe.module.injections[0].coefficients() is None  # nothing stays behind


def test_callbacks_see_each_step_and_may_change_it(pipe):
    seen = []

    def look(pipeline, step, timestep, tensors):
        assert pipeline is pipe and set(tensors) == {"latents", "denoised"}
        seen.append((step, float(timestep), tensors["latents"].clone(), tensors["denoised"].clone()))

    options = dict(num_frames=FRAMES, num_inference_steps=3, output_type="latent")
    names = ["latents", "denoised"]
    whole = pipe(
        IMAGES[0], TRACKS[0], callback_on_step_end=look, callback_on_step_end_tensor_inputs=names, **options
    ).frames
    assert [step for step, *_ in seen] == [0, 1, 2]
    sigmas = karras_sigmas(3, sigma_max=pipe.module.sampling.sigma_max)
    assert np.allclose([time for _, time, *_ in seen], (0.25 * sigmas[:-1].log()).numpy())
    # the last sigma is 0: what is left is the estimate, x + (0 - s)(x - D)/s
    assert torch.equal(seen[-1][2], whole) and torch.allclose(seen[-1][3], whole, atol=1e-4)

    def zero(pipeline, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    assert not pipe(IMAGES[0], TRACKS[0], callback_on_step_end=zero, **options).frames.any()


def test_a_call_that_is_cancelled_leaves_nothing_behind(pipe):
    class Cancelled(Exception):
        pass

    def cancel(pipeline, step, timestep, tensors):
        raise Cancelled

    before = {name: value.clone() for name, value in pipe.module.state_dict().items()}
    expected = pipe(IMAGES[0], TRACKS[0], output_type="latent", **SHORT).frames
    with pytest.raises(Cancelled):
        pipe(IMAGES[0], TRACKS[0], callback_on_step_end=cancel, **SHORT)
    assert all(torch.equal(before[name], value) for name, value in pipe.module.state_dict().items())
    assert pipe.module.injections[0].coefficients() is None
    assert torch.equal(pipe(IMAGES[0], TRACKS[0], output_type="latent", **SHORT).frames, expected)


def test_output_types_are_diffusers(pipe):
    def frames(kind):
        return pipe(IMAGES[:2], TRACKS[:2], output_type=kind, **SHORT).frames

    pictures, array, tensor, latents = map(frames, ("pil", "np", "pt", "latent"))
    assert [len(clip) for clip in pictures] == [FRAMES] * 2 and isinstance(pictures[0][0], Image.Image)
    assert array.shape == (2, FRAMES, 64, 64, 3) and array.dtype == np.float32 and 0 <= array.min() < array.max() <= 1
    assert tensor.shape == (2, FRAMES, 3, 64, 64) and np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), array)
    video = pipe.module.base.decode(latents).clamp(-1, 1)
    assert torch.equal((video + 1) / 2, tensor)
    assert np.array_equal(np.stack([np.stack(clip) for clip in pictures]), to_uint8(video).movedim(2, -1).numpy())


def test_networks_of_the_ends_are_off_the_device_while_sampling(monkeypatch):
    pipe = made(latents="vae")
    svd = pipe.module.base
    expected = np.stack(pipe(IMAGES[0], TRACKS[0], **SHORT).frames[0])
    where, moves = {}, []
    names = {id(svd.image_encoder): "image_encoder", id(svd.vae): "vae"}
    moved = torch.nn.Module.to

    def to(self, device, *rest):
        if id(self) in names:
            moves.append((names[id(self)], where.get("stage")))
        return moved(self, device, *rest)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    pipe.enable_model_cpu_offload("cpu")
    assert [name for name, _ in moves] == ["image_encoder", "vae"]
    moves.clear()

    def look(*_):
        where.setdefault("stage", f"after {len(moves)} moves")
        return {}

    video = np.stack(pipe(IMAGES[0], TRACKS[0], callback_on_step_end=look, **SHORT).frames[0])
    assert np.array_equal(video, expected)
    # there and back for the first frame, then the steps, then there and back for the decoding
    assert where["stage"] == "after 4 moves" and len(moves) == 8
    pipe.to("cpu")
    moves.clear()
    pipe(IMAGES[0], TRACKS[0], **SHORT)
    assert not moves


@pytest.mark.gpu
def test_offloading_frees_the_device():
    pipe = made(latents="vae")
    pipe.enable_model_cpu_offload("cuda")
    seen = []

    def look(*_):
        seen.append(
            {next(part.parameters()).device.type for part in (pipe.module.base.vae, pipe.module.base.image_encoder)}
        )

    pipe(IMAGES[0], TRACKS[0], callback_on_step_end=look, **SHORT)
    assert seen == [{"cpu"}] * 2 and pipe.module.base.unet.device.type == "cuda"


def psnr(video, whole) -> list[float]:
    """Decibels of each frame, of pictures in [-1, 1]."""
    return (10 * torch.log10(4 / (video - whole).square().mean(dim=(0, 2, 3, 4)))).tolist()


def test_windows_of_the_vae_leave_no_seam():
    """Whole windows are the whole to the bit. Beside each other they are 14 dB off at seams, overlapping nowhere."""
    svd = random_svd("tiny", seed=1, latents="vae")
    walk = torch.randn(1, 24, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    latents = walk[:, :1] + 0.1 * walk.cumsum(1)
    whole = svd.decode(latents)
    assert torch.equal(svd.decode(latents, 24), whole) and torch.equal(svd.decode(latents, 99), whole)
    off = {size: (svd.decode(latents, size) - whole).abs().mean() for size in (8, 4, 1)}
    assert off[8] < off[4] < off[1]
    chunks = psnr(torch.cat([svd.decode(part) for part in latents.split(8, 1)], 1), whole)
    windows = psnr(svd.decode(latents, 8), whole)
    seams, inside = (7, 8, 15, 16), (3, 4, 11, 12, 19, 20)
    assert max(chunks[i] for i in seams) < 27 and min(chunks[i] for i in inside) > 48
    assert min(windows) > 39 and max(windows[4:20]) < 46  # no frame stands out where windows change


def test_windows_cover_every_length():
    """Each frame is in some window of the size, and two neighbours share at least half of one."""
    for length in range(1, 40):
        for size in range(1, 20):
            starts = window_starts(length, size)
            assert starts[0] == 0 and starts[-1] == max(0, length - size)
            steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
            assert all(0 < step <= size - size // 2 for step in steps)


def test_a_pipeline_decodes_in_windows():
    pipe = MotionControlPipeline(made(latents="vae").module)
    clips = [pipe(IMAGES[0], TRACKS[0], decode_chunk_size=chunk, **SHORT).frames[0] for chunk in (None, 4, 2)]
    assert np.array_equal(np.stack(clips[0]), np.stack(clips[1]))
    assert not np.array_equal(np.stack(clips[0]), np.stack(clips[2]))


def test_a_control_in_place_of_strokes(pipe):
    control = RegionWise().draw(TRACKS[0], None, FRAMES, 64, 64)
    latents = [
        pipe(IMAGES[0], output_type="latent", **given, **SHORT).frames
        for given in (dict(control=control), dict(tracks=TRACKS[0]))
    ]
    assert torch.equal(*latents)
