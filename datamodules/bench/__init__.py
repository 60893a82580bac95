"""Benchmarks: their layout, a small one with known answers, and folders of videos to score against them.

`datamodules.BenchmarkDataModule` is theirs too; it needs lightning, which scoring does without.
"""

from datamodules.bench.pairs import LEVELS, Pair, data_of, find_pairs, is_published, named, read_pair, usable_samples

__all__ = ["LEVELS", "Pair", "data_of", "find_pairs", "is_published", "named", "read_pair", "usable_samples"]
