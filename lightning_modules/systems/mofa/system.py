"""MOFA-Video (trajectories) as a system: its files, a drawing to its flow, its sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.drawings import Drawing
from lightning_modules.layers import seeded
from lightning_modules.process.sampler import OnStep
from lightning_modules.systems.controlled import ControlledSVD, Settings
from lightning_modules.systems.files import base_parts, fit, read_state, released_file
from lightning_modules.systems.mofa.cmp import CMP
from lightning_modules.systems.mofa.control import Sparse, dense_flow, sparse_of
from lightning_modules.systems.mofa.network import FlowControlledEncoder
from lightning_modules.systems.quirks import AS_RELEASED, Quirks
from lightning_modules.systems.svd_parts import picture, unit_picture
from lightning_modules.systems.system import FramedSystem, check_size, stretched

BASE_FRAMES = 25
CMP_FILE = "ckpt_iter_42000.pth.tar"
RELEASED = Settings(size=(512, 896), frames=25)  # short side 512, as the demo; of another shape, another long side


class MOFAVideo(FramedSystem):
    """MOFA-Video with trajectories, as a `System`.

    Args:
        svd: The networks; its settings' size has sides of multiples of 64.
        cmp: The network that makes a flow of few displacements.
    """

    name = "MOFA-Video"

    def __init__(self, svd: ControlledSVD, cmp: CMP):
        super().__init__(svd.settings, svd.quirks, svd.unet)
        self.svd, self.cmp, self.quirks = svd, cmp, svd.quirks

    @classmethod
    def load(
        cls,
        path: str,
        cmp: str,
        svd: str,
        quirks: Quirks = AS_RELEASED,
        settings: Settings = RELEASED,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> MOFAVideo:
        """Read the released weights; nothing in them is executed.

        Args:
            path: `diffusion_pytorch_model.safetensors` of the trajectory version, or its folder `controlnet`.
            cmp: `ckpt_iter_42000.pth.tar`, or its folder.
            svd: diffusers' SVD-XT 1.1, folder or hub id.
            quirks: As released, or corrected.
            settings: How it is sampled.
            dtype: Dtype of SVD and the copy; the release has float16. CMP computes in float32.
            device: Where they go.

        Raises:
            UserError: other weights, another base, or one that does not read; one line.
        """
        check_size(cls.name, settings.size)
        state, sparse = read_state(released_file(path)), read_state(released_file(cmp, CMP_FILE))
        with seeded(0):  # not on meta: counts of batches, which are not used, may be in no file
            network = CMP()
        fit(network, sparse, cmp, "CMP")
        parts = base_parts(svd, BASE_FRAMES, cls.name)
        with torch.device("meta"):
            copy = FlowControlledEncoder(parts["unet"].config)
        fit(copy, state, path, cls.name)
        controlled = ControlledSVD(parts["unet"], copy, parts["vae"], parts["image_encoder"], settings, quirks)
        controlled.to(device, dtype)
        nn.Module.to(network, device, torch.promote_types(dtype, torch.float32)).requires_grad_(False).eval()
        return cls(controlled, network)

    def sparse(self, drawing: Drawing) -> Sparse:
        """Sparse displacements of a drawing."""
        resized, tracks = self.tracks(drawing)
        brush = None if resized.brush is None else np.where(resized.brush > 0, 255, 0)
        return sparse_of(tracks, brush, self.size, self.frames, self.quirks.whole_pixels)

    @torch.no_grad()
    def control(self, drawing: Drawing) -> Tensor:
        """(L - 1, 2, H, W) flow from the first frame to each later one, in pixels."""
        resized = stretched(drawing, self.size)
        weight: Any = self.cmp.image_encoder.conv5.weight
        return dense_flow(self.sparse(resized), unit_picture(resized.image).to(weight), self.cmp.flow)

    @torch.no_grad()
    def __call__(self, drawing: Drawing, seed: int, on_step: OnStep | None = None) -> Tensor:
        """(L, 3, H, W) float32 in [-1, 1]; see `System`."""
        resized, weight = stretched(drawing, self.size), self.svd.unet.conv_in.weight
        copy: Any = self.svd.copy
        maps = copy.maps(picture(resized.image).to(weight), self.control(resized)[None].to(weight))
        return self.svd.video(resized.image, maps, seed, on_step)
