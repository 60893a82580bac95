"""Benchmarks: their layout, a small one with known answers, and folders of videos to score against them."""

from datamodules.bench.pairs import (
    LEVELS,
    STEP,
    BenchmarkDataModule,
    Pair,
    find_pairs,
    fitting_size,
    read_pair,
    usable_samples,
)

__all__ = [
    "LEVELS",
    "STEP",
    "BenchmarkDataModule",
    "Pair",
    "find_pairs",
    "fitting_size",
    "read_pair",
    "usable_samples",
]
