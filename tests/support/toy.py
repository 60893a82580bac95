"""Your own base: all of it in one file. A YAML names it by class path."""

import torch
from torch import nn

from lightning_modules.bases.base import Posterior, VideoBase
from lightning_modules.bases.grid import Grid
from lightning_modules.bases.places import Level, Place
from lightning_modules.bases.said import whole_hash
from lightning_modules.bases.weights import weights_hash
from lightning_modules.conditioning import Conditioning, to_float
from lightning_modules.layers import seeded
from lightning_modules.process.edm import EDM

CHANNELS, WIDTH = 12, 32


class Network(nn.Module):
    """Two convolutions over the noisy frames beside the first one, and the noise level."""

    def __init__(self):
        super().__init__()
        self.into = nn.Conv2d(2 * CHANNELS, WIDTH, 3, padding=1)
        self.level = nn.Linear(1, WIDTH)
        self.out = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def forward(self, noisy, time, first):
        first = first[:, None] if first.ndim < noisy.ndim else first  # or one for each frame
        x = torch.cat([noisy, first.expand_as(noisy)], 2)
        shift = self.level(time.to(x.dtype)[:, None]).repeat_interleave(x.shape[1], 0)
        h = self.into(x.flatten(0, 1)) + shift[..., None, None]
        return self.out(torch.nn.functional.silu(h)).unflatten(0, x.shape[:2])


class Toy(VideoBase):
    """Latents are the means of each quarter of 8 x 8 pixels; the control enters after the first convolution.

    Args:
        init_seed: Seed of its weights.
        trained: Train them.
    """

    grid = Grid(space=8, step=16)
    conditionings = ("first",)
    unconditional = {"first": "zero"}
    named_by = ("init_seed",)

    def __init__(self, init_seed: int = 0, trained: bool = False):
        self.init_seed, self.trained, self.channels = init_seed, trained, CHANNELS

    def build(self, dtype=torch.float32):
        with seeded(self.init_seed):
            self.network = Network().to(dtype).requires_grad_(self.trained)
        self.hashes = {"network": weights_hash(self.network)}
        self.identity = {**self.record(), "hash": whole_hash(self.hashes)}
        return self

    def denoisers(self):
        return {"network": self.network}

    def process(self):
        return EDM()

    def encode(self, video):
        kept = torch.nn.functional.avg_pool2d(video.flatten(0, 1), 4)
        mean = torch.nn.functional.pixel_unshuffle(kept, 2).unflatten(0, (len(video), -1))
        return Posterior(mean, torch.zeros_like(mean))

    def normalise(self, latents):
        return 2 * latents

    def decode(self, latents, chunk=None):
        small = torch.nn.functional.pixel_shuffle(latents / 2, 2)
        return small.repeat_interleave(4, -1).repeat_interleave(4, -2)

    def condition(self, batch, inputs, noise):
        first = to_float(batch["first_frame"], self.arithmetic())
        return Conditioning({"first": self.encode(first[:, None]).mean[:, 0]})

    def predict(self, noisy, time, cond):
        return self.network(noisy, time, cond.kept("first"))

    def levels(self):
        return [Level(WIDTH, 8)]

    def places(self):
        return [Place("out.0", self.network.into, WIDTH, 0)]
