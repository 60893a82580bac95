"""The pipeline: from a checkpoint of `fit` to a video that a person drew."""

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import EMA
from datamodules.drawings import Backdrop, Drawing
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.process.base import randn
from tests.support.modules import data, module, perturb, trainer


@pytest.fixture(scope="module")
def checkpoint(sprites, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, 1).fit(module(), data(sprites))
    return folder / "last.ckpt"


def clip(pipe, *arguments, **options) -> np.ndarray:
    """(L, H, W, 3) uint8."""
    return np.stack(pipe(*arguments, **options).frames[0])


def test_draws_a_video(checkpoint):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    perturb(pipe.module)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    track = np.array([[20, 20], [30, 24], [40, 20]])
    options = dict(num_frames=4, num_inference_steps=2)
    video = clip(pipe, image, [track], np.ones((64, 64)), **options)
    assert video.shape == (4, 64, 64, 3) and video.dtype == np.uint8
    assert np.array_equal(video, clip(pipe, image, [track], np.ones((64, 64)), **options))
    assert not np.array_equal(video, clip(pipe, image, [track], np.ones((64, 64)), seed=1, **options))
    assert not np.array_equal(video, clip(pipe, image, [track[::-1]], np.ones((64, 64)), **options))


def test_carries_the_trained_weights(checkpoint):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], p) for name, p in pipe.module.trained().items())


def test_carries_the_averaged_weights_of_a_run_with_ema(sprites, tmp_path):
    run = trainer(tmp_path, 2)
    run.callbacks.insert(0, EMA(0.9))
    run.fit(module(lr=1e-3), data(sprites))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for ema, expected in ((True, saved["callbacks"]["EMA"]["shadow"]), (False, saved["state_dict"])):
        pipe = MotionControlPipeline.from_checkpoint(tmp_path / "last.ckpt", ema=ema)
        loaded = dict(pipe.module.named_parameters())
        assert len(expected) > 50 and all(torch.equal(value, loaded[name]) for name, value in expected.items())


@pytest.fixture(scope="module")
def pipe(checkpoint):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    perturb(pipe.module)
    return pipe


IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
TRACK = [(20, 20), (30, 24), (40, 20)]
SHORT = dict(num_frames=3, num_inference_steps=1)
WIDE = np.zeros((100, 200, 3), np.uint8)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(image=np.zeros((64, 64), np.uint8)), "image"),
        (dict(image="no/such.png"), "no/such.png"),
        (dict(height=72), "height is 72.*multiple of 64"),
        (dict(tracks=[np.zeros((0, 2))]), "track 0"),
        (dict(tracks=[[["a", "b"]]]), "track 0"),
        (dict(brush=np.ones((5, 5))), "brush"),
        (dict(num_inference_steps=0), "num_inference_steps is 0"),
        (dict(num_frames=1), "num_frames is 1"),
        (dict(fps=0), "fps is 0"),
        (dict(motion_bucket_id=float("nan")), "motion_bucket_id is nan"),
        (dict(motion_bucket_id="mine"), "motion_bucket_id is 'mine'"),
        (dict(tracks=[], motion_bucket_id="drawing", control=torch.zeros(3, 3, 64, 64)), "expected a number beside a"),
        (dict(noise_aug_strength=float("nan")), "noise_aug_strength is nan"),
        (dict(output_type="mp4"), "output_type is 'mp4'"),
        (dict(decode_chunk_size=-1), "decode_chunk_size is -1"),
        (dict(seed=[1, 2]), "seed: expected one"),
        (dict(generator=[]), "generator: expected one"),
        (dict(image=[]), "image: expected at least one"),
        (dict(image=[IMAGE, IMAGE]), "tracks: expected a list with an entry for each of 2"),
        (dict(control=torch.zeros(3, 3, 64, 64)), "control: expected no tracks"),
        (dict(tracks=[], control=torch.zeros(2, 3, 64, 64)), r"control: expected finite \(3, 3, 64, 64\)"),
        (dict(callback_on_step_end_tensor_inputs=["prompt"]), "callback_on_step_end_tensor_inputs: 'prompt'"),
        (dict(image=WIDE, tracks=[[(5, 100)]]), "track 0 starts at"),
        (dict(fit="fill"), "fit is 'fill'"),
        (dict(image=Drawing(IMAGE, []), tracks=[TRACK]), "image: .*tracks and brush"),
        (dict(image=Drawing(IMAGE, [], backdrop=Backdrop({"pan": 0.1})), tracks=()), "image: .*`control`"),
    ],
)
def test_what_does_not_fit_is_named(pipe, changes, named):
    with pytest.raises(ValueError, match=named) as caught:
        pipe(**{"image": IMAGE, "tracks": [TRACK], **SHORT, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"no", b"", None])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "x.ckpt"
    if content is None:
        torch.save({"remoco": {"architecture": None}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        MotionControlPipeline.from_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_images_brushes_and_files_are_one(pipe, tmp_path):
    brush = np.zeros((64, 64), np.uint8)
    brush[10:40, 10:50] = 255
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    rgba = np.dstack([np.zeros((64, 64, 3), np.uint8), brush])  # a painting program's layer
    Image.fromarray(rgba, "RGBA").save(tmp_path / "brush.png")
    arrays = clip(pipe, IMAGE, [TRACK], brush, **SHORT)
    assert np.array_equal(arrays, clip(pipe, Image.fromarray(IMAGE), [TRACK], Image.fromarray(brush), **SHORT))
    assert np.array_equal(arrays, clip(pipe, tmp_path / "image.png", [TRACK], str(tmp_path / "brush.png"), **SHORT))
    assert not np.array_equal(arrays, clip(pipe, IMAGE, [TRACK], None, **SHORT))


def test_pictures_are_used_as_viewers_show_them(pipe):
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:20] = 0
    layer, hidden = np.dstack([IMAGE, alpha]), IMAGE.copy()
    for background, colour in (("white", 255), ((0, 0, 0), 0)):
        hidden[:20] = colour
        wanted = clip(pipe, hidden, [TRACK], **SHORT)
        for image in (layer, layer.astype(np.uint16) * 257, Image.fromarray(layer), layer / 255.0):
            assert np.array_equal(wanted, clip(pipe, image, [TRACK], background=background, **SHORT))
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(IMAGE)))
    turned.getexif()[0x0112] = 6
    assert np.array_equal(clip(pipe, IMAGE, [TRACK], **SHORT), clip(pipe, turned, [TRACK], **SHORT))
    with pytest.raises(ValueError, match="^background is mauve, expected a colour"):
        pipe(IMAGE, [TRACK], background="mauve", **SHORT)


def test_any_size_is_framed_with_tracks_and_brush_and_said_once(checkpoint, recwarn):
    pipe = MotionControlPipeline.from_checkpoint(checkpoint)
    wide = np.repeat(np.repeat(IMAGE, 2, 0), 2, 1)  # twice the size: scaling down gives the image back
    wide = np.concatenate([np.zeros((128, 10, 3), np.uint8), wide, np.zeros((128, 10, 3), np.uint8)], axis=1)
    seen = {}
    pipe.module.condition.draw = lambda tracks, brush, *size: (
        seen.update(t=tracks, b=brush) or torch.zeros(3, 3, 64, 64)
    )
    for _ in range(2):
        video = clip(
            pipe, wide, [[(10 + 2 * 20 + 0.5, 2 * 20 + 0.5)]], np.ones(wide.shape[:2]), height=64, width=64, **SHORT
        )
    assert video.shape == (3, 64, 64, 3)
    assert np.allclose(seen["t"][0], [[20, 20]]) and seen["b"].shape == (64, 64) and seen["b"].all()
    assert sum("the image is 148 x 128, the clip 64 x 64" in str(w.message) for w in recwarn.list) == 1


def test_a_drawing_is_its_parts(pipe):
    """With times and brushes of its own, which the parts give as a point for each frame and a mask for each track."""
    brush = np.zeros((64, 64), np.uint8)
    brush[10:30, 10:30], brush[40:, 40:] = 1, 2
    drawing = Drawing(IMAGE, [np.array(TRACK, float)] * 2, brush, [np.array([0, 0.2, 1]), None], [1, None])
    parts = clip(pipe, IMAGE, drawing.strokes(3), drawing.masks(), **SHORT)
    assert np.array_equal(clip(pipe, drawing, **SHORT), parts)
    assert not np.array_equal(clip(pipe, IMAGE, drawing.tracks, brush, **SHORT), parts)
    both = np.stack(pipe([drawing, IMAGE], [(), [TRACK]], [None, None], seed=[0, 0], **SHORT).frames[0])
    assert np.abs(both.astype(int) - parts).max() <= 1


def test_a_control_says_the_frame(pipe):
    """The picture is brought to it; of another size than the trained one too."""
    control = torch.zeros(3, 3, 64, 128)
    control[1:, 0, 20:40, 20:40], control[:, 2, 20:40, 20:40] = 5, 1
    assert clip(pipe, WIDE, control=control, **SHORT).shape == (3, 64, 128, 3)
    assert clip(pipe, WIDE, **SHORT).shape == (3, 64, 64, 3)
    assert clip(pipe, WIDE, height=64, **SHORT).shape == (3, 64, 128, 3)


def test_seeds_and_generators(pipe):
    def made(**options):
        return clip(pipe, IMAGE, [TRACK], **SHORT, **options)

    one = made(generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    assert np.array_equal(one, made(generator=generator))
    assert not np.array_equal(one, made(generator=generator))
    assert np.array_equal(made(seed=4), made(seed=4)) and not np.array_equal(made(seed=4), made(seed=5))


def test_one_stream_per_purpose(pipe, monkeypatch):
    """Neighbouring seeds share no noise, as they did when the second purpose took the seed after the first's."""
    used = []
    from lightning_modules import pipeline_clips as source

    monkeypatch.setattr(source, "randn", lambda seeds, *rest: (used.append(seeds[0]), randn(seeds, *rest))[1])
    for seed in (0, 1, 2):
        pipe(IMAGE, [TRACK], seed=seed, **SHORT)
    assert len(set(used)) == 6


def test_saved_and_loaded(pipe, tmp_path, monkeypatch):
    assert pipe.usual_inputs()["motion_bucket_id"] == 17
    for number, bucket in enumerate((3.5, "drawing")):
        monkeypatch.setattr(pipe.module, "sampling", pipe.module.sampling.but(inputs={"motion_bucket_id": bucket}))
        pipe.save_pretrained(tmp_path / f"{number}")
        assert (
            MotionControlPipeline.from_pretrained(tmp_path / f"{number}").usual_inputs()["motion_bucket_id"] == bucket
        )
    pipe.save_pretrained(tmp_path / "mine")
    again = MotionControlPipeline.from_pretrained(tmp_path / "mine").to("cpu")
    assert np.array_equal(clip(pipe, IMAGE, [TRACK], **SHORT), clip(again, IMAGE, [TRACK], **SHORT))
    assert sum(path.stat().st_size for path in (tmp_path / "mine").iterdir()) < 2e8
    (tmp_path / "mine/motion_control.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="motion_control.safetensors"):
        MotionControlPipeline.from_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="nowhere"):
        MotionControlPipeline.from_pretrained(tmp_path / "nowhere")


NOWHERE = "cuda:99"  # no machine has it


@pytest.mark.parametrize("device", [NOWHERE, "meta", "no such device"])
@pytest.mark.parametrize("offloads", [False, True])
def test_a_device_that_is_not_there_leaves_the_pipeline_where_it_was(pipe, device, offloads):
    image, options = np.zeros((64, 64, 3), np.uint8), dict(num_frames=3, num_inference_steps=1)
    if offloads:
        pipe.enable_model_cpu_offload("cpu")
    expected = clip(pipe, image, [[[9, 9], [30, 9]]], **options)
    for move in (pipe.to, pipe.enable_model_cpu_offload):
        with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
            move(device)
        assert pipe.module.device == torch.device("cpu") and pipe._offloads == offloads
        assert {tensor.device.type for tensor in pipe.module.state_dict().values()} == {"cpu"}
        assert np.array_equal(clip(pipe, image, [[[9, 9], [30, 9]]], **options), expected)
    pipe.to("cpu")


def test_a_device_whose_memory_ends_halfway_gives_all_parts_back(pipe, monkeypatch):
    """cpu:0 is the CPU under another name, to torch another device; its memory ends at the last part."""
    image, options = np.zeros((64, 64, 3), np.uint8), dict(num_frames=3, num_inference_steps=1)
    expected, moved = clip(pipe, image, [[[9, 9], [30, 9]]], **options), []
    last = list(pipe.module.children())[-1]
    apply = last._apply

    def full(move, *arguments):
        moved.append(move(torch.zeros(1)).device)
        if len(moved) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return apply(move, *arguments)

    monkeypatch.setattr(last, "_apply", full)
    with pytest.raises(torch.OutOfMemoryError):
        pipe.to("cpu:0")
    assert pipe.module.device == torch.device("cpu") and len(moved) == 2  # forth, and all of them back
    assert np.array_equal(clip(pipe, image, [[[9, 9], [30, 9]]], **options), expected)


def test_parts_that_do_not_fit_beside_the_others_go_back(pipe, monkeypatch):
    pipe.enable_model_cpu_offload("cpu")
    places, move = [], torch.nn.Module.to

    def full(part, place):
        places.append(str(place))
        if len(places) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return move(part, place)

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(torch.OutOfMemoryError), pipe._in_use():
        pass
    assert len(places) > 1  # the first part's way there failed, and all go back
    monkeypatch.undo()
    pipe.to("cpu")
