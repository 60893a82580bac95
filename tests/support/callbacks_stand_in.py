"""A small module and clips with the methods that the callbacks call; the real ones have their own tests."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_modules.config import Sampling

FRAMES, HEIGHT, WIDTH = 6, 24, 32


class Squares(Dataset):
    """A bright square that moves to the right over a gradient; the same clip for the same index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        top = int(torch.randint(2, HEIGHT - 10, (), generator=generator))
        ground = torch.linspace(40, 140, WIDTH).expand(3, HEIGHT, WIDTH) * torch.rand(3, 1, 1, generator=generator)
        video = ground.repeat(FRAMES, 1, 1, 1)
        flow = torch.zeros(FRAMES, 2, HEIGHT, WIDTH)
        for i in range(FRAMES):
            video[i, :, top : top + 8, 3 + 3 * i : 11 + 3 * i] = torch.tensor([250.0, 200, 60]).view(3, 1, 1)
            flow[i, 0, top : top + 8, 3:11] = 3 * i
        video = video.byte()
        return {"video": video, "flow": flow, "first_frame": video[0], "position": index, "key": f"square-{index:03d}"}


class Data(LightningDataModule):
    """The same batch in every training step, so that a resumed run sees the same; validation without padding."""

    def __init__(self, train: int = 16, val: int = 5, batch_size: int = 2) -> None:
        super().__init__()
        self.train, self.val, self.batch_size = Squares(train), Squares(val), batch_size

    def train_dataloader(self) -> DataLoader:
        order = list(range(self.batch_size)) * (len(self.train) // self.batch_size)
        return DataLoader(self.train, self.batch_size, sampler=order)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size, sampler=Unpadded(self.val, *self._ranks()))

    test_dataloader = val_dataloader

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class Unpadded(DistributedSampler):
    """Each clip once over all ranks."""

    def __iter__(self):
        return iter(range(self.rank, len(self.dataset), self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))


class Module(LightningModule):
    """Learns one colour offset; `sample` is the first frame shifted by it, so its clips differ from the real ones."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.trained = nn.Conv2d(3, 3, 1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        nn.init.eye_(self.trained.weight.data.view(3, 3))
        nn.init.zeros_(self.trained.bias)
        self.sampled: list[str] = []
        self.sampling = Sampling(sigma_max=700.0)

    def forward(self, frames):
        return self.trained(frames.float() / 127.5 - 1)

    def training_step(self, batch, batch_idx):
        noise = torch.randn(3, generator=torch.Generator().manual_seed(self.global_step))
        target = batch["video"][:, -1].float() / 127.5 - 1 + 0.1 * noise.view(1, 3, 1, 1)
        loss = (self(batch["first_frame"]) - target).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = (self(batch["first_frame"]) - 0.5).square().mean()
        self.log("val/loss", loss, batch_size=len(batch["key"]), sync_dist=True)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.learning_rate)

    @torch.no_grad()
    def sample(self, batch, control):
        self.sampled += batch["key"]
        frames = self(batch["first_frame"])
        return frames[:, None].repeat(1, FRAMES, 1, 1, 1)

    @torch.no_grad()
    def denoise_once(self, batch, sigma):
        return self.sample(batch, None) / (1 + sigma)

    def draw_control(self, batch, condition=None):
        return torch.cat([batch["flow"], (batch["flow"][:, -1:, :1] > 1).float().expand(-1, FRAMES, -1, -1, -1)], 2)


def trainer(folder, callbacks=(), **kwargs) -> Trainer:
    """A CPU trainer in the run folder `<folder>/run`."""
    defaults = {"max_steps": 4, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    kwargs = defaults | {"check_val_every_n_epoch": None, "val_check_interval": 4} | kwargs
    kwargs.setdefault("logger", TensorBoardLogger(str(folder), name="run", version=""))
    return Trainer(
        accelerator="cpu",
        devices=kwargs.pop("devices", 1),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        enable_checkpointing=any("Checkpoint" in type(callback).__name__ for callback in callbacks),
        callbacks=list(callbacks),
        **kwargs,
    )
