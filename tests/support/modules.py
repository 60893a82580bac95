"""Small modules, their data and a trainer."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer

from callbacks import AtomicCheckpointIO, LastCheckpoint
from conditions import RegionWise
from datamodules import SpritesDataModule
from lightning_modules import MotionControlModule
from lightning_modules.bases import SVD
from lightning_modules.process.base import randn
from tests.support.nets import motion_control
from tests.support.recorder import Recorder
from tests.support.sprites import SPRITES

TINY = dict(size="tiny", latents="space_to_depth", steps=2)


def module(**changes) -> MotionControlModule:
    return motion_control(**{**TINY, "condition": RegionWise(min_mask_ratio=0.5), **changes})


def data(root, **changes) -> SpritesDataModule:
    return SpritesDataModule(root=str(root), **{**SPRITES, "batch_size": 2, "num_workers": 0, **changes})


def trainer(folder, steps: int, **changes) -> Trainer:
    last = LastCheckpoint(every_n_train_steps=1)
    last.dirpath = str(folder)
    options = dict(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        callbacks=[last, Recorder(f"{folder}/steps.jsonl")],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    return Trainer(**{**options, **changes})


def perturb(net: MotionControlModule) -> MotionControlModule:
    """Move what starts at zero (injection, LoRA B), so that every trained tensor has a gradient."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.trained().values():
            if not p.any():
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return net


def inputs(svd: SVD, batch: int = 2, frames: int = 3, side: int = 8) -> tuple[torch.Tensor, ...]:
    """noisy, sigma, image latent, image embedding, ids for a latent of side x side."""
    channels, seeds = svd.channels, list(range(batch))
    return (
        randn(seeds, (frames, channels, side, side)),
        torch.linspace(0.5, 5, batch),
        randn(seeds, (channels, side, side)),
        randn(seeds, (1, svd.unet.config.cross_attention_dim)),
        torch.tensor([[8.0, 17.0, 0.02]]).repeat(batch, 1),
    )


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values in float64, of a generator of their own."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written(root: Path, **settings) -> tuple[Path, dict]:
    """Sprites as shards in a folder, and the first batch of them."""
    module = data(root, **settings)
    module.prepare_data()
    module.setup("fit")
    return root, next(iter(module.train_dataloader()))
