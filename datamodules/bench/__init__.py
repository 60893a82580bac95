"""Benchmarks: their layout, a small one with known answers, and folders of videos to score against them."""

from typing import Any

from datamodules.bench.pairs import LEVELS, Pair, find_pairs, read_pair, usable_samples

__all__ = ["LEVELS", "BenchmarkDataModule", "Pair", "find_pairs", "read_pair", "usable_samples"]


def __getattr__(name: str) -> Any:
    if name != "BenchmarkDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datamodules.bench.datamodule import BenchmarkDataModule  # imports lightning, which scoring does without

    return BenchmarkDataModule
