"""The real loading code on small files in the real format: I3D, Inception, CLIP, Stable Diffusion."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from metrics import CLIPFeatures, DIFTFeatures, FrameConsistency, I3DLogits, InceptionFeatures, MDImg
from metrics.i3d import InceptionI3d, max_pool, pad_same
from remoco.common.errors import UserError
from tests.support.feature_networks import save_script
from tests.support.stable_diffusion import write_stable_diffusion


def video(frames: int = 2, height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


def cubic_resize(plane: np.ndarray, size: int) -> np.ndarray:
    """PIL's bicubic in float64: Keys' kernel with a = -1/2, widened where it shrinks, weights of sum 1."""

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    def matrix(n: int) -> np.ndarray:
        scale = n / size
        centres = (np.arange(size) + 0.5) * scale
        weights = kernel((np.arange(n) + 0.5 - centres[:, None]) / max(scale, 1))
        return weights / weights.sum(1, keepdims=True)

    return matrix(plane.shape[0]) @ plane @ matrix(plane.shape[1]).T


def test_i3d_logits_take_bicubic_frames_and_refuse_other_files(tmp_path):
    """DisCo's `tool/metrics/resize.py`: each channel resized in float, neither rounded nor clipped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = InceptionI3d().eval()
    torch.save(network.state_dict(), tmp_path / "i3d_pretrained_400.pt")
    before = torch.random.get_rng_state()
    logits = I3DLogits(tmp_path / "i3d_pretrained_400.pt")
    seen: list[torch.Tensor] = []
    logits.load()
    assert torch.equal(before, torch.random.get_rng_state())
    logits.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    clip = video(8, 40, 300)
    clip[:, 0], clip[:, 1, :, :20], clip[:, 1, :, 20:] = 0, 0, 255  # an edge overshoots on both sides
    expected = np.stack([[cubic_resize(plane, 224) for plane in frame] for frame in clip.double().numpy()])
    assert expected.max() > 260 and expected.min() < -5
    got = logits(clip[None])
    np.testing.assert_allclose(seen[0][0].transpose(0, 1).numpy(), (expected / 127.5 - 1).astype(np.float32), atol=2e-5)
    assert torch.equal(got, network(seen[0]))
    assert logits.num_features == 400 and "i3d-disco" in logits.protocol and logits.name == "i3d_disco"
    assert "neither rounded nor clipped" in logits.protocol
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: not the weights of an I3D"):
        I3DLogits(tmp_path / "other.pt").load()
    torch.save(network, tmp_path / "pickled.pt")  # would have to be unpickled
    with pytest.raises(ValueError, match="pickled.pt: not a readable file of tensors"):
        I3DLogits(tmp_path / "pickled.pt").load()


def test_i3d_takes_the_plain_mean_over_time_as_disco():
    """Of 17 to 24 frames three places in time are left; pooling pairs first would count the middle one twice."""
    network = InceptionI3d().double()
    with torch.no_grad():
        network.logits.conv3d.weight.fill_(1)
        network.logits.conv3d.bias.zero_()
        for places in (1, 2, 3, 4):
            values = 10.0 ** torch.arange(places, dtype=torch.float64)
            x = torch.zeros(1, 1024, places, 7, 7, dtype=torch.float64)
            x[0, 0] = values.view(places, 1, 1)
            assert network.head(x)[0, 0].item() == pytest.approx(values.mean().item(), rel=1e-15)


def test_i3d_has_the_parameters_of_the_published_file():
    """Counts and some names of the Kinetics-400 RGB network: 12.7 M parameters in 57 convolutions and the logits."""
    state = InceptionI3d().state_dict()
    assert (
        sum(t.numel() for name, t in state.items() if "running" not in name and "num_batches" not in name) == 12697264
    )
    assert len([name for name in state if name.endswith("conv3d.weight")]) == 58
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_4f.b2b.bn.running_var"].shape == (128,) and state["logits.conv3d.bias"].shape == (400,)


@pytest.mark.parametrize("size, kernel, stride, before, after", [(16, 7, 2, 2, 3), (15, 7, 2, 3, 3), (8, 3, 1, 1, 1)])
def test_padding_is_tensorflows_same(size, kernel, stride, before, after):
    x = torch.ones(1, 1, size, 1, 1)
    padded = pad_same(x, (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0]
    assert padded.tolist() == [0] * before + [1] * size + [0] * after
    assert max_pool(x, (kernel, 1, 1), (stride, 1, 1)).shape[2] == -(-size // stride)


class Resizing(torch.nn.Module):
    """The call of StyleGAN's inception-2015-12-05.pt: uint8 in, features where they are asked for."""

    def forward(self, images: torch.Tensor, return_features: bool = False):
        assert images.dtype == torch.uint8 and return_features
        return images.float().mean((2, 3))


def test_an_inception_that_resizes_itself_gets_uint8(tmp_path):
    network = InceptionFeatures(save_script(Resizing(), tmp_path / "inception.pt"))
    assert torch.equal(network(video()), video().float().mean((2, 3)))
    assert network.num_features == 3 and "inside the network" in network.protocol


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP in the transformers layout, with its preprocessing."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},  # noqa: E501
        "resample": 3, "do_resize": True, "do_center_crop": True, "do_normalize": True, "do_rescale": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_clip_sees_the_cropped_and_normalised_picture(clip_folder, tmp_path):
    features = CLIPFeatures(str(clip_folder))
    picture = video(1, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (features_mean(clip_folder)))
    network = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        expected = network((picture / 255 - mean) / std).image_embeds
        assert torch.allclose(features(picture), expected, atol=1e-4)
        wide = F.pad(picture, (16, 16))  # 32 x 64: the middle is what is seen
        assert torch.allclose(features(wide), expected, atol=1e-4)
    metric = FrameConsistency(features)
    metric.update(picture.expand(3, -1, -1, -1))
    assert metric.name == "frame_consistency" and metric.compute().item() == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="not a CLIP"):
        CLIPFeatures(str(tmp_path)).load()


@pytest.fixture(scope="module")
def seen_by_clip(clip_folder):
    """What the network of CLIP is given for a picture (H, W, 3) uint8."""
    features, seen = CLIPFeatures(str(clip_folder)), []
    features.load()
    features.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or (kwargs["pixel_values"],))[0]), with_kwargs=True
    )

    def of(picture: np.ndarray) -> np.ndarray:
        features(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None])
        return seen.pop()[0].numpy()

    return of


def openai_preprocessed(picture: np.ndarray, size: int, mean: list[float], std: list[float]) -> np.ndarray:
    """CLIP's `_transform` (openai/CLIP, clip/clip.py) as torchvision computes it: Resize, CenterCrop, Normalize."""
    height, width = picture.shape[:2]
    short, long = min(height, width), max(height, width)
    ends = (size, int(size * long / short))
    w, h = ends if width <= height else ends[::-1]
    resized = Image.fromarray(picture).resize((w, h), Image.Resampling.BICUBIC)
    top, left = int(round((h - size) / 2.0)), int(round((w - size) / 2.0))
    cropped = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float64) / 255
    return ((cropped - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("tall", [False, True])
def test_clip_crops_as_openai_at_every_size(clip_folder, seen_by_clip, tall):
    mean, std = features_mean(clip_folder)
    noise = np.random.RandomState(1).randint(0, 256, (32, 32 + 256, 3)).astype(np.uint8)
    for more in range(257):
        picture = noise[:, : 32 + more]
        picture = picture.transpose(1, 0, 2) if tall else picture
        expected = openai_preprocessed(picture, 32, mean, std)
        assert np.abs(seen_by_clip(picture) - expected).max() < 1e-5, picture.shape


@pytest.mark.parametrize("size", [(40, 57), (57, 40), (64, 99), (101, 37), (20, 31), (33, 33), (320, 512), (31, 90)])
def test_clip_resizes_as_openai(clip_folder, seen_by_clip, size):
    picture = np.random.RandomState(2).randint(0, 256, (*size, 3)).astype(np.uint8)
    expected = openai_preprocessed(picture, 32, *features_mean(clip_folder))
    assert np.abs(seen_by_clip(picture) - expected).max() < 1e-5


def test_a_network_of_another_kind_is_no_clip(clip_folder, tmp_path):
    """transformers fills what a file does not have with random weights: that must be an error."""
    settings = (clip_folder / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").write_text(settings)
    ViTModel(ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                       image_size=32, patch_size=8)).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="not a CLIP") as caught:
        CLIPFeatures(str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def features_mean(folder) -> tuple[list[float], list[float]]:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    return settings["image_mean"], settings["image_std"]


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return write_stable_diffusion(tmp_path_factory.mktemp("sd"))


def test_dift_is_the_second_up_block_and_the_same_every_time(sd_folder):
    features = DIFTFeatures(str(sd_folder))
    features.load()
    image = video(1, 64, 64)[0]
    before = torch.random.get_rng_state()
    with torch.no_grad():
        got, again = features(image), features(image)
    assert torch.equal(got, again) and torch.equal(before, torch.random.get_rng_state())
    assert got.shape == (64, 4, 4)  # channels of up block 1, at a sixteenth of the image's size
    # the same by the whole UNet, its up block recorded
    unet = UNet2DConditionModel.from_pretrained(sd_folder, subfolder="unet").eval()
    seen = []
    unet.up_blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    generator = torch.Generator().manual_seed(42)
    with torch.no_grad():
        posterior = features.vae.encode(image[None].float() / 127.5 - 1).latent_dist
        shape = (8, *posterior.mean.shape[1:])
        latents = posterior.mean + posterior.std * torch.randn(shape, generator=generator)
        latents = latents * features.vae.config.scaling_factor
        noisy = features.scheduler.add_noise(latents, torch.randn(shape, generator=generator), torch.tensor(261))
        unet(noisy, torch.tensor(261), features.prompt.expand(8, -1, -1))
    assert torch.allclose(got, seen[0].mean(0), atol=1e-5)
    assert "t = 261, up block 1, ensemble of 8, seed 42" in features.protocol and MDImg(features).name == "md_img"


def test_dift_takes_another_up_block(sd_folder):
    features = DIFTFeatures(str(sd_folder), block=0)
    features.load()
    unet, seen = features.unet, []
    unet.up_blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output), prepend=True)
    with torch.no_grad():
        assert torch.equal(features(video(1, 64, 64)[0]), seen[0].mean(0))
    assert "up block 0" in features.protocol
    with pytest.raises(UserError, match="its UNet has no up block 7"):
        DIFTFeatures(str(sd_folder), block=7).load()


def test_bfloat16_is_float32s_value_within_its_rounding(clip_folder, sd_folder):
    """bfloat16 keeps 8 bits: an embedding turns by about 2^-8, a cosine of neighbours by no more; both say which."""
    frames = video(4, 32, 32)
    values = {}
    for dtype in ("float32", "bfloat16"):
        metric = FrameConsistency(CLIPFeatures(str(clip_folder), dtype=dtype))
        metric.update(frames)
        values[dtype] = metric.compute().item()
        assert dtype in metric.protocol and metric.name == "frame_consistency"
        assert metric.feature.network.dtype == getattr(torch, dtype)
    assert 0 < abs(values["bfloat16"] - values["float32"]) < 2**-6
    whole, half = (DIFTFeatures(str(sd_folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    whole.load(), half.load()
    assert half.vae.dtype == torch.float32 and half.unet.dtype == torch.bfloat16 and "bfloat16" in half.protocol
    with torch.no_grad():
        a, b = whole(frames[0].repeat(1, 2, 2)), half(frames[0].repeat(1, 2, 2))
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    assert F.cosine_similarity(a, b, dim=0).min() > 0.98  # MD-Img compares by cosine


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_a_network_that_lacks_a_weight_is_not_drawn_at_random(part, sd_folder, tmp_path):
    shutil.copytree(sd_folder, tmp_path / "sd")
    (file,) = (tmp_path / "sd" / part).glob("*.safetensors")
    state = load_file(file)
    name = next(name for name in sorted(state) if name.endswith("bias"))
    del state[name]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"no {part} of Stable Diffusion .*its file has no {name}") as caught:
        DIFTFeatures(str(tmp_path / "sd")).load()
    assert "\n" not in str(caught.value)


def test_a_pickle_beside_its_config_is_no_network(sd_folder, tmp_path):
    shutil.copytree(sd_folder, tmp_path / "sd")
    (file,) = (tmp_path / "sd" / "unet").glob("*.safetensors")
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(UserError, match="no unet of Stable Diffusion"):
        DIFTFeatures(str(tmp_path / "sd")).load()


def test_a_folder_without_stable_diffusion_is_one_line(clip_folder):
    with pytest.raises(ValueError, match="no vae of Stable Diffusion") as caught:
        DIFTFeatures(str(clip_folder)).load()
    assert "\n" not in str(caught.value)
