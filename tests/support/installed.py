"""Whether a package is there, without importing it: Ray reads what it listens on when it is first imported."""

from importlib.util import find_spec

import pytest


def need(package: str, extra: str) -> None:
    """Skip the test where the package of an extra is not installed."""
    if find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install -e '.[{extra}]' -c constraints.txt")
