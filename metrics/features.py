"""Feature networks of the Frechet metrics and of frame consistency, from files; `stand_ins` has seeded ones.

One seam. A video network takes uint8 videos (N, L, 3, H, W), a frame network uint8 images (N, 3, H, W); both return
(N, D) float32 and carry `num_features` (D), `name` (part of the metric's name) and `protocol` (what a reader must know
to compare). Making one only looks for its file; `load` reads it, at the latest when it is first used. Nothing here
unpickles or touches the global random state, and nothing downloads unless a hub id is named.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.i3d import InceptionI3d
from remoco.common.errors import UserError
from remoco.common.model_folders import check_config, check_model
from remoco.common.tensor_files import finite, read_saved

INCEPTION_SIZE = 299
I3D_SIZE = 224
MAX_SIDE = 4096  # pixels that an image processor may ask for
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
Precision = Literal["float32", "bfloat16"]


class FeatureNetwork(nn.Module):
    """The seam: frozen, in evaluation mode, self-describing."""

    num_features: int
    name: str
    protocol: str

    def load(self) -> None:
        """Read the weights, once; then `num_features` and `protocol` are known.

        Raises:
            UserError: the file is not this network's.
        """

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in evaluation mode: a feature network is never trained."""
        return super().train(False)


class FileFeatures(FeatureNetwork):
    """A network from a local file: looked for when it is made, read by `load`.

    Args:
        path: the file.

    Raises:
        UserError: no such file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise UserError(f"feature network {path}: no such file")
        self.path = Path(path)
        self.network: Any = None

    def read(self) -> nn.Module:
        """The network of the file, on the CPU."""
        return load_torchscript(self.path)

    def example(self) -> Tensor:
        """An input of the smallest useful size."""
        raise NotImplementedError

    def load(self) -> None:
        """Read the networks, once."""
        if self.network is not None:
            return
        self.network = self.read().eval()
        for parameter in self.network.parameters():  # TorchScript has no requires_grad_ of its own
            parameter.requires_grad = False
        try:
            self._num_features = self._width()
        except ValueError:
            self.network = None
            raise

    @property
    def num_features(self) -> int:  # type: ignore[override]  # known when the file is read
        """D; reads the file."""
        self.load()
        return self._num_features

    @property
    def protocol(self) -> str:  # type: ignore[override]  # known when the file is read
        """Which file, and how it is called; reads the file."""
        self.load()
        return f"{self.convention()[0]}: {describe_file(self.path)}, {self.convention()[1]}"

    def convention(self) -> tuple[str, str]:
        """What the network is called in the literature, and how its input is prepared."""
        raise NotImplementedError

    def _width(self) -> int:
        """Call the network once: a wrong file is found when it is named, not hours later."""
        try:
            with torch.no_grad():
                features = self(self.example())
        except Exception as error:  # TorchScript raises whatever the foreign code raises
            raise UserError(
                f"feature network {self.path}: does not work as {self.name} ({last_line(error)})"
            ) from error
        if features.ndim != 2 or features.shape[0] != 1:
            raise UserError(f"feature network {self.path}: gives shape {tuple(features.shape)}, expected (1, features)")
        return features.shape[1]


def load_torchscript(path: str | Path) -> torch.jit.ScriptModule:
    """A TorchScript network on the CPU.

    Raises:
        UserError: not a TorchScript archive.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"feature network {path}: not a readable TorchScript file") from error


def describe_file(path: str | Path) -> str:
    """File name and the first 12 hex digits of its sha256."""
    with open(path, "rb") as file:
        return f"{Path(path).name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]})"


class I3DFeatures(FileFeatures):
    """`i3d-styleganv`, the `fvd2048_16f` convention: 400 features of `i3d_torchscript.pt`.

    The network rescales and resizes by itself, from uint8 values: `rescale=True, resize=True, return_features=True`.

    Args:
        path: the TorchScript file; it takes (B, 3, L, H, W).

    Raises:
        UserError: no such file; in `load`: not TorchScript, or not called like this network.
    """

    name = "i3d_styleganv"

    def example(self) -> Tensor:
        return torch.zeros(1, 16, 3, 64, 64, dtype=torch.uint8)

    def convention(self) -> tuple[str, str]:
        return "i3d-styleganv", "rescale and resize to 224 inside the network"

    def forward(self, videos: Tensor) -> Tensor:
        """(B, L, 3, H, W) uint8 -> (B, D) float32, one clip at a time: activations are large, clips few."""
        self.load()
        clips = (video[None].transpose(1, 2).float() for video in videos)
        return torch.cat([self.network(clip, rescale=True, resize=True, return_features=True) for clip in clips])


class I3DLogits(FileFeatures):
    """`i3d-disco`, the FVD of DisCo's evaluation: the 400 Kinetics logits of `i3d_pretrained_400.pt`.

    Args:
        path: the state dict of the I3D network (tensors alone; a file that would have to be unpickled is refused).

    Raises:
        UserError: no such file; in `load`: not a state dict, or another network's.
    """

    name = "i3d_disco"

    def read(self) -> nn.Module:
        try:
            state = read_saved(self.path)
        except (OSError, UserError) as error:
            raise UserError(f"feature network {self.path}: not a readable file of tensors ({error})") from error
        with torch.device("meta"):  # first weights of its own would move the global generator
            network = InceptionI3d()
        network.to_empty(device="cpu")
        try:
            network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"feature network {self.path}: not the weights of an I3D with 400 classes") from error
        if odd := [name for name, value in network.state_dict().items() if not finite(value)]:
            raise UserError(f"feature network {self.path}: {odd[0]} holds NaN or infinite values")
        return network

    def example(self) -> Tensor:
        return torch.zeros(1, 8, 3, I3D_SIZE, I3D_SIZE, dtype=torch.uint8)

    def convention(self) -> tuple[str, str]:
        resize = f"{I3D_SIZE} x {I3D_SIZE} PIL bicubic, each channel in float, neither rounded nor clipped"
        return "i3d-disco", f"logits, mean over time; {resize}; x / 127.5 - 1"

    def forward(self, videos: Tensor) -> Tensor:
        """(B, L, 3, H, W) uint8 -> (B, 400) float32."""
        self.load()
        device = next(self.network.parameters()).device
        logits = []
        for video in videos:
            frames = torch.from_numpy(np.stack([_bicubic(frame, I3D_SIZE) for frame in video.cpu().numpy()]))
            clip = frames.to(device).transpose(0, 1) / 127.5 - 1
            logits.append(self.network(clip[None]))
        return torch.cat(logits)


def _bicubic(frame: np.ndarray, size: int) -> np.ndarray:
    """(3, H, W) uint8 -> (3, size, size) float32 from 0 to 255 and a little beyond, by PIL's bicubic of floats."""
    planes = (Image.fromarray(plane.astype(np.float32)) for plane in frame)  # mode F
    return np.stack([np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)) for plane in planes])


class InceptionFeatures(FileFeatures):
    """An Inception V3 as TorchScript (`pt_inception-2015-12-05` weights).

    A network whose `forward` has an argument `return_features` (the file of StyleGAN's metrics) takes uint8 images and
    resizes them itself; any other takes float images (N, 3, 299, 299) in [-1, 1], resized here bilinearly without
    antialias.

    Args:
        path: TorchScript file; it returns (N, D).

    Raises:
        UserError: no such file; in `load`: not TorchScript, or not called like this network.
    """

    name = "inception"

    def example(self) -> Tensor:
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

    def convention(self) -> tuple[str, str]:
        resizes = "resized inside the network" if self._resizes() else "299 x 299 bilinear without antialias"
        return "Inception V3", resizes

    def _resizes(self) -> bool:
        return any(argument.name == "return_features" for argument in self.network.forward.schema.arguments)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, D) float32."""
        self.load()
        if self._resizes():
            return self.network(images, return_features=True).flatten(1)
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=False)
        return self.network(resized / 127.5 - 1).flatten(1)


def last_line(error: Exception) -> str:
    """What an exception says last: the cause, where libraries wrap it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class CLIPFeatures(FeatureNetwork):
    """Image embeddings of CLIP for frame consistency, by its own preprocessing: bicubic to the short side, centre crop.

    The crop is OpenAI's at every size (torchvision's `CenterCrop`); transformers' is a pixel aside where an odd rest is
    split.

    Args:
        path: local folder in the transformers layout, or hub id; the published numbers use
            `openai/clip-vit-base-patch32`.
        revision: revision of the hub id.
        dtype: the network computes in it; the published numbers are float32's.
    """

    name = "clip"

    def __init__(self, path: str, revision: str | None = None, dtype: Precision = "float32") -> None:
        super().__init__()
        self.path, self.revision, self.dtype = path, revision, dtype
        self.network: Any = None

    def load(self) -> None:
        if self.network is not None:
            return
        from transformers import CLIPVisionModelWithProjection
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        try:
            if Path(self.path).is_dir():  # untrusted: its config must not decide how much memory is taken
                check_model(Path(self.path), clip_layout)
                for name in (each for each in PROCESSORS if (Path(self.path) / each).is_file()):
                    check_config(Path(self.path) / name, MAX_SIDE)
            network, report = CLIPVisionModelWithProjection.from_pretrained(
                self.path, revision=self.revision, dtype=getattr(torch, self.dtype), output_loading_info=True
            )
            self.processor = CLIPImageProcessorPil.from_pretrained(self.path, revision=self.revision)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"feature network {self.path}: not a CLIP in the transformers layout ({last_line(error)})"
            ) from error
        if missing := sorted(report["missing_keys"]):  # the library draws them at random
            raise UserError(f"feature network {self.path}: not a CLIP, its file has no {missing[0]}")
        if odd := [name for name, value in network.state_dict().items() if not finite(value)]:
            raise UserError(f"feature network {self.path}: {odd[0]} holds NaN or infinite values")
        self.network = network.eval().requires_grad_(False)
        self.num_features = network.config.projection_dim
        size, patch = network.config.image_size, network.config.patch_size
        self.protocol = f"CLIP {self.path}, patch {patch}, {size} x {size} by its own preprocessing, {self.dtype}"

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, D) float32."""
        self.load()
        pixels = self._pixels(images.cpu().numpy())
        return self.network(pixels.to(self.network.device, self.network.dtype)).image_embeds.float()

    def _pixels(self, images: np.ndarray) -> Tensor:
        """(N, 3, H, W) uint8 -> the network's normalised input, as the settings beside its weights say."""
        options = {"input_data_format": "channels_first", "return_tensors": "pt"}
        whole = {"do_center_crop": False, "do_rescale": False, "do_normalize": False}
        resized = self.processor(images=list(images), **whole, **options)["pixel_values"]
        if self.processor.do_center_crop:
            crop = self.processor.crop_size
            resized = centre_crop(resized, crop["height"], crop["width"])
        return self.processor(images=list(resized.numpy()), do_resize=False, **options)["pixel_values"]


def centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The middle of (..., H, W), as torchvision crops: half of an odd rest is rounded to an even number of pixels."""
    top, left = (
        max(0, round((size - wanted) / 2)) for size, wanted in zip(images.shape[-2:], (height, width), strict=True)
    )
    return images[..., top : top + height, left : left + width]


def clip_layout(config: dict[str, Any]) -> nn.Module:
    """CLIP's vision tower of a config.json, which may be that of both towers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    inner = config.get("vision_config")
    sizes = {**inner, "projection_dim": config.get("projection_dim", 512)} if isinstance(inner, dict) else config
    return CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(sizes))
