"""A benchmark in `test`: every pair sampled once, as a video file, then scored in the columns of the paper's tables."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from callbacks.generated import sampling
from callbacks.made_by import RECORD, clip_seed, made_by, refuse_to_mix
from callbacks.run_folder import rank_zero_print, run_folder
from datamodules.bench import LEVELS, data_of, scoring
from datamodules.bench.datamodule import BenchmarkDataModule
from lightning_modules.bases.said import NEGATIVE, PROMPT, check_inputs, rate
from lightning_modules.config import Sampling
from metrics import VideoMetric, shown
from metrics.published import tables
from remoco.common.errors import UserError
from remoco.common.videos.files import write_video
from remoco.common.whole_files import clear_leftovers, write_json

PUBLISHED_SEED = 2025


class Benchmark(Callback):
    """Samples each pair of a `BenchmarkDataModule` and scores the videos, for tables 2 and 3 of the paper.

    In `<run folder>/benchmark/<name of the benchmark's folder>/`: `videos/<level>/<sample>.mp4`, `generated.json` (what
    made them) and `scores.json`. The noise of a pair is a function of the seed and its name, and pairs are sampled one
    by one, so number of GPUs and order change no video. Started again after a kill, it samples the missing videos, and
    again those whose inputs have changed. It refuses a folder with videos of other weights or settings. Scores are
    those of `remoco score` on the same files.

    Args:
        metrics: Metrics to measure; null means stand-ins that need no weights.
        seed: Seed of the noise.
        frames: Number of frames of a video.
        fps: Frames per second, of the files and as the network's input, where it has that one.
        inputs: Other inputs of the base by name, for example `motion_bucket_id` of SVD. Inputs that are not listed keep
            the model's values.
    """

    def __init__(
        self,
        metrics: list[VideoMetric] | None = None,
        seed: int = PUBLISHED_SEED,
        frames: int = 16,
        fps: int = 8,
        inputs: dict[str, float | str] | None = None,
    ) -> None:
        for name, value, least, most in (
            ("frames", frames, 2, 1024), ("fps", fps, 1, 1000),
            ("seed", seed, -(2**63), 2**63 - 1),
        ):  # fmt: skip
            if not least <= value <= most:
                raise UserError(f"Benchmark.{name} is {value}, expected at least {least}, at most {most}")
        self.metrics, self.seed, self.frames, self.fps = metrics, seed, frames, fps
        self.inputs = dict(inputs or {})
        self.folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the metrics' networks, so that their errors come before the first video."""
        if stage != "test":
            return
        if not isinstance(trainer.datamodule, BenchmarkDataModule):
            raise UserError("callbacks.Benchmark needs data of class datamodules.BenchmarkDataModule")
        data = trainer.datamodule
        try:
            pl_module.base.grid.check(self.frames, data.height, data.width)
        except UserError as error:
            raise UserError(f"Benchmark: {error}") from None
        self.metrics = scoring.offline_metrics() if self.metrics is None else self.metrics
        try:
            for metric in self.metrics:
                metric.load()
        except ValueError as error:
            raise UserError(f"Benchmark.metrics: {error}") from error

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to mix videos of other weights or settings with these."""
        data = trainer.datamodule
        self.folder = run_folder(trainer) / "benchmark" / data.root.resolve().name
        settings = {
            "condition": pl_module.condition.record(),
            **{f"sampling.{name}": value for name, value in self._sampling(pl_module).record().items()},
            "seed": self.seed,
            "frames": self.frames,
            "fps": self.fps,
            "height": data.height,
            "width": data.width,
            "fit": data.fit,
        }
        with sampling(trainer, pl_module):
            made = made_by(pl_module, settings)
        remedy = "move the folder away, or give the logger another name"
        known = refuse_to_mix(self.folder, made, f"{self.folder}: holds videos", remedy).get("inputs") or {}
        if trainer.is_global_zero:
            for level in LEVELS:
                clear_leftovers(self.folder / "videos" / level)
            for key, fingerprint in data.samples.items():
                if known.get(key, fingerprint) != fingerprint:
                    (self.folder / "videos" / f"{key}.mp4").unlink(missing_ok=True)
            root = {"root": str(data.root.resolve())}  # for `remoco report`; the benchmark may move
            write_json(self.folder / RECORD, root | made | {"inputs": known | data.samples})
        if data.prompts and PROMPT in pl_module.base.inputs():
            pl_module.base.embed_text(
                [*sorted(data.prompts), pl_module.sampling.inputs.get(NEGATIVE, "")]
            )  # a text encoder is read once for all pairs
        trainer.strategy.barrier()

    def _sampling(self, pl_module: LightningModule) -> Sampling:
        known = pl_module.base.inputs()
        inputs = self.inputs | rate(known, self.fps)
        check_inputs(known, inputs, "Benchmark.inputs.")
        return pl_module.sampling.but(inputs=inputs)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample the pair unless its video is there."""
        from lightning_modules.pipeline import MotionControlPipeline  # diffusers takes seconds, `--help` does without

        pair = batch["pair"]
        path = self.folder / "videos" / f"{pair.key}.mp4"
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        pipeline = MotionControlPipeline(pl_module)
        pipeline.set_progress_bar_config(disable=True)  # the trainer has its own
        with sampling(trainer, pl_module):
            try:
                output = pipeline(
                    pair.drawing,
                    height=pair.drawing.size[0],
                    width=pair.drawing.size[1],
                    num_frames=self.frames,
                    sampling=self._sampling(pl_module),
                    seed=clip_seed(self.seed, pair.key),
                )
            except ValueError as error:
                raise UserError(f"{pair.key}: {error}") from error
        write_video(path, np.stack(output.frames[0]), self.fps)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the files, log the numbers, print the tables."""
        trainer.strategy.barrier()
        data = trainer.datamodule
        videos = scoring.for_bench(self.folder / "videos", data.root, self.frames, fit=data.fit)
        results = scoring.score_folder(
            videos, self.metrics or [], pl_module.device, trainer.global_rank, trainer.world_size
        )
        for name, result in results.items():
            result["protocol"] += f"; seed {self.seed}; {pl_module.sampling.steps} steps"
            value = torch.tensor(result["value"], dtype=torch.float32, device=pl_module.device)
            pl_module.log(f"test/{name}", value, sync_dist=True)
            rank_zero_print(f"test/{name} = {shown(result['value'], 4)}   [{result['protocol']}]")
        if trainer.is_global_zero:
            write_json(self.folder / "scores.json", results)
        text = tables({run_folder(trainer).name: results}, data_of(data.root))
        rank_zero_print(f"\n{text}\n\nVideos and scores: {self.folder}")
