"""A sweep of the tiny configuration."""

from pathlib import Path

TINY = Path(__file__).parents[1] / "campaign" / "tiny.yaml"
SIZE = "model.init_args.condition.init_args.region_size"
