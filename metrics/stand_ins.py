"""Stand-ins for feature networks: seeded random convolutions, whose numbers compare with nothing that is published."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.features import FeatureNetwork
from remoco.common.errors import UserError


class _RandomFeatures(FeatureNetwork):
    """Seeded random convolutions: mean and deviation of each of 32 channels over what they run over.

    Args:
        seed: seed of the weights; the same seed gives the same weights everywhere.
    """

    name = "random_features"
    num_features = 64
    size = 64  # of the short side
    convolution: type[nn.Conv2d] | type[nn.Conv3d]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= seed < 2**63:
            raise UserError(f"{type(self).__name__}.seed is {seed}, expected 0 to 2^63 - 1")
        generator = torch.Generator().manual_seed(seed)
        first, second = (_random_conv(self.convolution, *size, generator) for size in ((3, 16), (16, 32)))
        self.layers = nn.Sequential(first, nn.SiLU(), second, nn.SiLU())
        kind = "3D" if self.convolution is nn.Conv3d else "2D"
        self.protocol = f"seeded random {kind} convolutions (seed {seed}), short side bilinear to {self.size}"


class RandomVideoFeatures(_RandomFeatures):
    """Seeded random 3D convolutions: a stand-in where the real weights are not, under another name.

    It ranks runs of one project, no more.

    Args:
        seed: seed of the weights; the same seed gives the same weights everywhere.
    """

    convolution = nn.Conv3d

    def forward(self, videos: Tensor) -> Tensor:
        """(B, L, 3, H, W) uint8 -> (B, 64): mean and deviation of each channel over time and space."""
        frames = _resize_short_side(videos.flatten(0, 1), self.size)
        clips = frames.unflatten(0, videos.shape[:2]).transpose(1, 2)
        return _mean_and_deviation(self.layers(clips))


class RandomFrameFeatures(_RandomFeatures):
    """Seeded random 2D convolutions: the stand-in for Inception, under another name.

    Args:
        seed: seed of the weights; the same seed gives the same weights everywhere.
    """

    convolution = nn.Conv2d

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 64): mean and deviation of each channel over space."""
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
