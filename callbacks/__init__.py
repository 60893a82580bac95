"""What happens around training: checkpoints, the run's folder, averages, samples, metrics, throughput."""

from callbacks.benchmark import Benchmark
from callbacks.checkpoint import AtomicCheckpointIO, BestCheckpoint, resolve_checkpoint
from callbacks.control_error import ControlErrors
from callbacks.ema import EMA
from callbacks.evaluation import Evaluation
from callbacks.last_checkpoint import LastCheckpoint
from callbacks.model_table import ModelTable
from callbacks.predictions import PredictionWriter
from callbacks.run_folder import RunFolder, SaveRunConfig
from callbacks.samples import Samples
from callbacks.throughput import Throughput
from callbacks.video_metrics import VideoMetrics

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "Benchmark",
    "BestCheckpoint",
    "ControlErrors",
    "Evaluation",
    "LastCheckpoint",
    "ModelTable",
    "PredictionWriter",
    "RunFolder",
    "Samples",
    "SaveRunConfig",
    "Throughput",
    "VideoMetrics",
    "resolve_checkpoint",
]
