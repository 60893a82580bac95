"""A module that moves what its control moves, and clips to measure it on."""

import torch

from conditions import RegionWise, flow_to_pixels
from datamodules import SpritesDataModule
from metrics import moving_object
from tests.support.callbacks_stand_in import Module


class Obedient(Module):
    """Moves the first frame by whole pixels along the flow of the batch it is given; without control it stays."""

    def __init__(self):
        super().__init__()
        self.given, self.controls = [], []
        self.condition = RegionWise(region_size=8)

    def draw_control(self, batch, condition=None):
        return self.condition(batch["flow"], batch["visibility"], batch["position"], None, batch["flow_step"])

    @torch.no_grad()
    def sample(self, batch, control):
        self.sampled += batch["key"]
        if control is not None:
            self.given.append(dict(batch))
            self.controls.append(control)
        first = batch["first_frame"].float() / 127.5 - 1
        clips = first[:, None].repeat(1, batch["flow"].shape[1], 1, 1, 1)
        if control is None:
            return clips
        masks, tracks = moving_object(flow_to_pixels(batch["flow"], batch.get("flow_step")))
        for clip, start, path in zip(clips, first, tracks.round().int()):
            for frame, (dx, dy) in zip(clip, path.tolist()):
                frame.copy_(start.roll((dy, dx), (-2, -1)))
        return clips

    def training_step(self, batch, batch_idx):
        return self(batch["first_frame"]).square().mean()


def plain_sprites(tmp_path_factory):
    """A fixture: makes data modules of the same few plain sprites."""
    root = tmp_path_factory.mktemp("plain")
    return lambda **changes: SpritesDataModule(
        **{
            "root": str(root), "scene": "plain", "clips": 4, "val_clips": 6, "frames": 4, "height": 64, "width": 64,
            "batch_size": 2, "val_batch_size": 4, "num_workers": 0, **changes,
        }
    )  # fmt: skip
