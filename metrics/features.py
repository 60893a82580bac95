"""Feature networks of the Frechet metrics: the real ones from TorchScript files, and seeded random stand-ins.

One seam. A video network takes uint8 videos (N, L, 3, H, W), a frame network uint8 images (N, 3, H, W); both return
(N, D) float32 and carry `num_features` (D), `name` (part of the metric's name) and `protocol` (what a reader must know
to compare). Nothing here downloads, unpickles, or touches the global random state.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INCEPTION_SIZE = 299


class FeatureNetwork(nn.Module):
    """The seam: frozen, in evaluation mode, self-describing."""

    num_features: int
    name: str
    protocol: str

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in evaluation mode: a feature network is never trained."""
        return super().train(False)


def load_torchscript(path: str | Path) -> torch.jit.ScriptModule:
    """Load a frozen TorchScript network on the CPU.

    Raises:
        ValueError: no such file, or not a TorchScript archive.
    """
    if not Path(path).is_file():
        raise ValueError(f"feature network {path}: no such file, expected a TorchScript file")
    try:
        network = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"feature network {path}: not a readable TorchScript file") from error
    for parameter in network.parameters():
        parameter.requires_grad = False
    return network.eval()


def describe_file(path: str | Path) -> str:
    """File name and the first 12 hex digits of its sha256."""
    with open(path, "rb") as file:
        return f"{Path(path).name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]})"


class I3DFeatures(FeatureNetwork):
    """The I3D of StyleGAN-V's FVD (`fvd2048_16f` convention): 400 features of `i3d_torchscript.pt`.

    The network rescales and resizes by itself, from uint8 values: `rescale=True, resize=True, return_features=True`.

    Args:
        path: the TorchScript file; it takes (B, 3, L, H, W).

    Raises:
        ValueError: no such file, not TorchScript, or not called like this network.
    """

    name = "i3d_styleganv"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.network = load_torchscript(path)
        self.num_features = _features_of(self, torch.zeros(1, 16, 3, 64, 64, dtype=torch.uint8), path)
        self.protocol = f"i3d-styleganv: {describe_file(path)}, rescale and resize to 224 inside the network"

    def forward(self, videos: Tensor) -> Tensor:
        """(B, L, 3, H, W) uint8 -> (B, D) float32, one clip at a time: activations are large, clips few."""
        clips = (video[None].transpose(1, 2).float() for video in videos)
        return torch.cat([self.network(clip, rescale=True, resize=True, return_features=True) for clip in clips])


class InceptionFeatures(FeatureNetwork):
    """An Inception V3 as TorchScript (`pt_inception-2015-12-05` weights) at 299 x 299, bilinear without antialias.

    Args:
        path: TorchScript file; it takes float images (N, 3, 299, 299) in [-1, 1] and returns (N, D).

    Raises:
        ValueError: no such file, not TorchScript, or not called like this network.
    """

    name = "inception"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.network = load_torchscript(path)
        self.num_features = _features_of(self, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), path)
        self.protocol = f"Inception V3: {describe_file(path)}, 299 x 299 bilinear without antialias"

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, D) float32."""
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=False)
        return self.network(resized / 127.5 - 1).flatten(1)


def _features_of(network: FeatureNetwork, example: Tensor, path: str | Path) -> int:
    """Call the network once: a wrong file is found when it is named, not hours later."""
    try:
        with torch.no_grad():
            features = network(example)
    except Exception as error:  # TorchScript raises whatever the foreign code raises
        raise ValueError(f"feature network {path}: does not work as {network.name} ({_first_line(error)})") from error
    if features.ndim != 2 or features.shape[0] != 1:
        raise ValueError(f"feature network {path}: gives shape {tuple(features.shape)}, expected (1, features)")
    return features.shape[1]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class RandomVideoFeatures(FeatureNetwork):
    """Seeded random 3D convolutions: a stand-in where the real weights are not, under another name.

    It ranks runs of one project, no more.

    Args:
        seed: of the weights; the same seed gives the same weights everywhere.
    """

    name = "random_features"
    num_features = 64

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.Sequential(
            _random_conv(nn.Conv3d, 3, 16, generator), nn.SiLU(), _random_conv(nn.Conv3d, 16, 32, generator), nn.SiLU()
        )
        self.size = 64
        self.protocol = f"seeded random 3D convolutions (seed {seed}), short side bilinear to {self.size}"

    def forward(self, videos: Tensor) -> Tensor:
        """(B, L, 3, H, W) uint8 -> (B, 64): mean and deviation of each channel over time and space."""
        frames = _resize_short_side(videos.flatten(0, 1), self.size)
        clips = frames.unflatten(0, videos.shape[:2]).transpose(1, 2)
        return _mean_and_deviation(self.layers(clips))


class RandomFrameFeatures(FeatureNetwork):
    """Seeded random 2D convolutions: the stand-in for Inception, under another name.

    Args:
        seed: of the weights.
    """

    name = "random_features"
    num_features = 64

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.Sequential(
            _random_conv(nn.Conv2d, 3, 16, generator), nn.SiLU(), _random_conv(nn.Conv2d, 16, 32, generator), nn.SiLU()
        )
        self.size = 64
        self.protocol = f"seeded random 2D convolutions (seed {seed}), short side bilinear to {self.size}"

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 64)."""
        return _mean_and_deviation(self.layers(_resize_short_side(images, self.size)))


def _resize_short_side(images: Tensor, size: int) -> Tensor:
    scale = size / min(images.shape[-2:])
    shape = [max(1, round(n * scale)) for n in images.shape[-2:]]
    return F.interpolate(images.float() / 127.5 - 1, size=shape, mode="bilinear", align_corners=False)


def _mean_and_deviation(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return torch.cat([flat.mean(-1), flat.std(-1, correction=0)], dim=-1)


def _random_conv(kind: type[nn.Conv2d] | type[nn.Conv3d], inputs: int, outputs: int, rng: torch.Generator) -> nn.Module:
    """A stride-2 convolution drawn from `rng` only (a layer's own initialisation would move the global state)."""
    layer = nn.utils.skip_init(kind, inputs, outputs, kernel_size=3, stride=2, padding=1)
    with torch.no_grad():
        fan_in = layer.weight[0].numel()
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng) * (2 / fan_in) ** 0.5)
        layer.bias.zero_()
    return layer.requires_grad_(False)
