"""A sweep of the tiny configuration, for the tests of `remoco sweep`."""

from pathlib import Path

import pytest
import yaml

TINY = Path(__file__).parents[1] / "campaign" / "tiny.yaml"
SIZE = "model.init_args.condition.init_args.region_size"


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep's YAML, of the tiny configuration unless changed."""

    def write(**changes) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"configs": [str(TINY)], "values": {SIZE: [4, 8]}, **changes}, sort_keys=False))
        return path

    return write
