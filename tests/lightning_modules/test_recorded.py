"""The shipped configurations compute what they computed when they were recorded: losses, gradients, samples."""

import pytest
import torch

from tests.support.recorded import CASES, outputs, recorded

BOUND = 1e-9  # of each tensor's largest value; CPUs and numbers of threads differ by some 1e-13


@pytest.fixture(scope="module")
def expected():
    return recorded()


@pytest.mark.filterwarnings("ignore:In CPU autocast", "ignore:LightningCLI's args")
@pytest.mark.parametrize("case", CASES)
def test_a_configuration_computes_what_was_recorded(expected, case):
    """In float64; a gradient's largest value is the first that is kept of it."""
    found = outputs(case)
    assert found.keys() == expected[case].keys()
    assert torch.equal(found.pop("control"), expected[case]["control"])
    for name, tensor in found.items():
        exact = expected[case][name]
        assert tensor.shape == exact.shape and (exact.any() or "gradient" in name), name
        assert (tensor - exact).abs().max() <= BOUND * exact.abs().max(), name
