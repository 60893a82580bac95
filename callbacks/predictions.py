"""`predict` as files."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from callbacks.run_folder import rank_zero_print, run_folder
from callbacks.strips import write_mp4
from remoco.common.whole_files import inside


class PredictionWriter(BasePredictionWriter):
    """Writes every clip that `predict` generates to `<run folder>/predictions/<key>.mp4`."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], *args: Any
    ) -> None:
        """Write one batch: `key` (list), `video` (B, L, 3, H, W) uint8, `fps` (B,)."""
        folder = run_folder(trainer) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        for key, video, fps in zip(prediction["key"], prediction["video"], prediction["fps"], strict=True):
            write_mp4(inside(folder, f"{key}.mp4"), video.permute(0, 2, 3, 1).numpy(), float(fps))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where they are."""
        rank_zero_print(f"Predictions: {run_folder(trainer) / 'predictions'}")
