"""The I3D network (Carreira and Zisserman 2017) with the parameter names of `i3d_pretrained_400.pt`, as DisCo runs it.

Convolutions and poolings pad as TensorFlow's "same", which depends on the input's size; batch normalisation has
eps 1e-3. The dropout before the logits does nothing in evaluation and has no parameters, so it is not here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# name of the stage -> channels of its branches: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; pool then 1x1
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# kernel and stride (frames, rows, columns) of the pooling before a stage
POOLS = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros around (N, C, L, H, W), so that the output has ceil(size / stride) entries; the odd one goes last."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def max_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The zeros of the padding take part, as in the network the weights come from."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, size, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))))


class Mixed(nn.Module):
    """Four branches side by side (Szegedy et al. 2015), inflated to 3D."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        one, two_in, two, three_in, three, four = channels
        self.b0 = Unit(inputs, one)
        self.b1a, self.b1b = Unit(inputs, two_in), Unit(two_in, two, 3)
        self.b2a, self.b2b = Unit(inputs, three_in), Unit(three_in, three, 3)
        self.b3b = Unit(inputs, four)

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class InceptionI3d(nn.Module):
    """Clips (N, 3, L, 224, 224) in [-1, 1] -> Kinetics-400 logits (N, 400), the plain mean over time.

    The average pooling before the logits spans one place in time, as in DisCo's `tool/metrics/inception3d.py`, whose
    FVD this is. (In the network that the weights come from it spans two, which counts inner places twice: that differs
    from 17 frames on.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        channels = 192
        for name, branches in MIXED.items():
            self.add_module(name, Mixed(channels, branches))
            channels = branches[0] + branches[2] + branches[4] + branches[5]
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(channels, 400, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv3d_1a_7x7(x)
        for name in ("Conv3d_2b_1x1", "Conv3d_2c_3x3", *MIXED):
            if name in POOLS:
                x = max_pool(x, *POOLS[name])
            x = self.get_submodule(name)(x)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """Features (N, 1024, L', 7, 7) -> logits (N, 400)."""
        x = F.avg_pool3d(x, (1, 7, 7), stride=1)
        return self.logits.get_submodule("conv3d")(x).mean((2, 3, 4))
