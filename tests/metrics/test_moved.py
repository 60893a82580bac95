"""Parts of a clip in which something moves, and what is measured in them."""

import math

import torch

from metrics.moved import RIM, detail, parts_of, psnr


def clip():
    covered = torch.zeros(2, 40, 40, dtype=torch.bool)
    covered[0, 8:20, 8:20] = True
    covered[1, 20:32, 20:32] = True
    return covered, torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_parts_are_the_thing_what_it_left_and_what_it_never_covered():
    covered, _ = clip()
    parts = parts_of(covered)
    thing, gone, still = (torch.zeros(1, 40, 40, dtype=torch.bool) for _ in range(3))
    thing[0, 21:31, 21:31] = True
    gone[0, 9:19, 9:19] = True  # within what the thing left, away from where it is now
    still[:] = True
    still[0, 8 - RIM : 20 + RIM, 8 - RIM : 20 + RIM] = False
    still[0, 20 - RIM : 32 + RIM, 20 - RIM : 32 + RIM] = False
    assert torch.equal(parts.thing, thing) and torch.equal(parts.uncovered, gone) and torch.equal(parts.still, still)


def test_error_and_detail_are_those_of_the_part():
    covered, real = clip()
    where = parts_of(covered).uncovered
    made = real.clone()
    made[1, :, where[0]] += 0.1
    assert math.isclose(psnr(made, real, where), 20, abs_tol=1e-9)
    assert psnr(made, real, parts_of(covered).still) == 100 and math.isclose(detail(real, real, where), 1)
    assert math.isclose(detail(0.5 * real, real, where), 0.25)
    assert math.isnan(psnr(made, real, where & False)) and math.isnan(detail(made, real, where & False))
