"""Released files, small."""

import pytest
import torch

from lightning_modules.released.encoders import image_encoder_to_released, vae_to_released
from tests.support.nets import random_svd
from tests.support.parity import ParitySet, clip_model, identity_quant_conv, load_set


@pytest.fixture(scope="module")
def parity() -> ParitySet:
    return load_set("wide")


@pytest.fixture
def released_file(parity, tmp_path):
    return parity.write(tmp_path)


@pytest.fixture(scope="module")
def whole_file(parity, tmp_path_factory):
    """A file with every group: network, VAE, image encoder with text leftovers, conditioning VAE."""
    folder = tmp_path_factory.mktemp("whole")
    svd = random_svd("tiny", seed=4)
    vae = vae_to_released(identity_quant_conv(svd.vae.state_dict()))
    clip = image_encoder_to_released(clip_model().state_dict())
    clip["open_clip.model.logit_scale"] = torch.tensor(4.6)
    groups = {
        "first_stage_model": vae,
        "conditioner.embedders.0": clip,
        "conditioner.embedders.3": {"encoder.x": torch.ones(3)},
    }
    state = {f"module.{prefix}.{k}": t for prefix, tensors in groups.items() for k, t in tensors.items()}
    return ParitySet(parity.config, parity.weights | state, {}).write(folder)
