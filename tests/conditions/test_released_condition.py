"""The condition of the released training code, from its own data."""

import numpy as np
import pytest
import torch

from conditions import global_visibility, motion_bucket, motion_mask
from conditions.region import candidate_regions, region_pixels, select_regions
from tests.support.arithmetic import UNIT_ROUNDOFF


def test_released_training_condition(shared):
    data = np.load(shared / "parity" / "conditions_public.npz", allow_pickle=False)
    train = {key.removeprefix("train."): data[key] for key in data if key.startswith("train.")}
    flow = torch.from_numpy(train["flow_raw"]).permute(0, 3, 1, 2).float()
    flow = torch.cat([torch.zeros_like(flow[:1]), flow])[None]
    visibility = torch.from_numpy(train["visibility"])[None]
    visible = global_visibility(visibility)
    assert np.array_equal(visible[0].numpy(), train["global_visibility"])

    candidates = candidate_regions(visible, 8, "block").flatten(1)
    draws = torch.from_numpy(train["block_rand"]).reshape(1, -1)
    regions = select_regions(candidates, torch.tensor([train["mask_ratio"].item()]), draws, torch.zeros(1))
    regions = regions.view(1, 8, 12)
    assert np.array_equal(regions[0].numpy(), train["block_mask8_final"])
    pixels = region_pixels(regions, visible, 8, "block")
    assert np.array_equal(pixels[0].numpy(), train["sparse_mask"])
    masked = (flow * pixels[:, None, None])[0].permute(0, 2, 3, 1)
    assert np.array_equal(masked.numpy(), train["masked_flow"])

    assert np.array_equal(motion_mask(flow, "squared")[0].numpy(), train["motion_mask_official"])
    assert np.array_equal(motion_mask(flow, "l2")[0].numpy(), train["motion_mask_paper"])
    assert not np.array_equal(train["motion_mask_official"], train["motion_mask_paper"])
    assert motion_bucket(flow).item() == pytest.approx(train["motion_bucket_id"].item(), rel=100 * UNIT_ROUNDOFF)
