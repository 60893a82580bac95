"""Conditional motion propagation (Zhan et al. 2019): a picture and a few displacements -> dense flow.

Source: the network that MOFA-Video uses, of XiaohangZhan/conditional-motion-propagation, whose repository states no
licence: names and shapes of the weights and formulas alone are used. Weights: the user's own `ckpt_iter_42000.pth.tar`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS, LARGEST = 99, 50.0  # of a component: no displacement beyond 49.5 pixels exists
IMAGE_CHANNELS, SPARSE_CHANNELS, BRANCH = 256, 16, 128
POOLS = (1, 2, 4, 8)  # of the decoder's branches
LAYERS = ((64, 3, 1, 1), (128, 4, 2, 1), (256, 6, 1, 2), (512, 3, 1, 4))  # width, blocks, stride, dilation


class ImageFeatures(NamedTuple):
    """(N, 256, h, w) at 1/8, and what the decoder takes from 1/4 and 1/2."""

    last: Tensor
    quarter: Tensor
    half: Tensor


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolution with batch norm, added to the input or its projection (He et al. 2016)."""

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, projects: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if projects:
            project = nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(4 * width))
        self.projects = projects

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 4 * width, h', w')."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if self.projects else x))


def layer(channels: int, width: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    """Several bottlenecks, the first of which changes width and resolution."""
    others = [Bottleneck(4 * width, width, 1, dilation, False) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(channels, width, stride, dilation, True), *others)


class ImageEncoder(nn.Module):
    """ResNet-50 whose last two layers are dilated instead of strided, and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            layer(channels, *sizes) for channels, sizes in zip((64, 256, 512, 1024), LAYERS, strict=True)
        )
        self.conv5 = nn.Conv2d(4 * LAYERS[-1][0], IMAGE_CHANNELS, 1)

    def forward(self, image: Tensor) -> ImageFeatures:
        """(N, 3, H, W) in [-1, 1]."""
        half = F.relu(self.bn1(self.conv1(image)))
        quarter = self.layer1(F.max_pool2d(half, 3, 2, padding=1))
        return ImageFeatures(self.conv5(self.layer4(self.layer3(self.layer2(quarter)))), quarter, half)


class SparseEncoder(nn.Module):
    """Displacements and their mask at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(4, 16, 5, 2, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, SPARSE_CHANNELS, 3, padding=1), nn.BatchNorm2d(SPARSE_CHANNELS), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip

    def forward(self, sparse: Tensor) -> Tensor:
        """(N, 4, H, W) -> (N, 16, H/8, W/8)."""
        return self.features(sparse)


def normed(in_channels: int, out_channels: int) -> list[nn.Module]:
    """3x3 convolution, batch norm, ReLU."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, corners on corners, to another map's size."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Four branches over pooled features, then two skips of the image, then logits."""

    def __init__(self) -> None:
        super().__init__()
        channels = IMAGE_CHANNELS + SPARSE_CHANNELS
        for pool in POOLS:
            convs = normed(channels, BRANCH) + normed(BRANCH, BRANCH) + normed(BRANCH, BRANCH)
            self.add_module(f"decoder{pool}", nn.Sequential(*[nn.MaxPool2d(pool)] * (pool > 1), *convs))
        self.fusion8 = nn.Sequential(*normed(len(POOLS) * BRANCH, 256))
        self.skipconv4, self.fusion4 = nn.Sequential(*normed(256, 128)), nn.Sequential(*normed(256 + 128, 128))
        self.skipconv2, self.fusion2 = nn.Sequential(*normed(64, 32)), nn.Sequential(*normed(128 + 32, 64))
        self.head = nn.Conv2d(64, 2 * BINS, 1)

    def forward(self, image: ImageFeatures, sparse: Tensor) -> Tensor:
        """(N, 198, H/2, W/2): the bins of x, then those of y."""
        x = torch.cat([image.last, sparse], 1)
        x = self.fusion8(torch.cat([enlarged(self.get_submodule(f"decoder{pool}")(x), x) for pool in POOLS], 1))
        for skip, conv, fusion in (
            (image.quarter, self.skipconv4, self.fusion4),
            (image.half, self.skipconv2, self.fusion2),
        ):
            x = fusion(torch.cat([enlarged(x, skip), conv(skip)], 1))
        return self.head(x)


class CMP(nn.Module):
    """28.6 M values; names of the released file, without `module.`."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.flow_encoder, self.flow_decoder = ImageEncoder(), SparseEncoder(), Decoder()

    def forward(self, image: Tensor, sparse: Tensor) -> Tensor:
        """Logits (N, 198, H/2, W/2).

        Args:
            image: (N, 3, H, W) in [0, 1], or (1, 3, H, W) for all of them; multiples of 8, 64 or more.
            sparse: (N, 4, H, W) dx, dy in pixels, and the mask twice.
        """
        features = self.image_encoder(2 * image - 1)
        n = len(sparse)
        features = ImageFeatures(*(each.expand(n, -1, -1, -1) for each in features))
        return self.flow_decoder(features, self.flow_encoder(sparse))

    def flow(self, image: Tensor, sparse: Tensor) -> Tensor:
        """Dense flow (N, 2, H, W) in pixels: the mean of the bins' centres under their probabilities."""
        bins = self(image, sparse).unflatten(1, (2, BINS)).softmax(2)
        width = 2 * LARGEST / BINS
        centres = -LARGEST + (torch.arange(BINS, dtype=torch.float64, device=bins.device) + 0.5) * width
        mean = (bins * centres.to(bins.dtype)[:, None, None]).sum(2)
        return enlarged(mean, image)
