"""`model.init_args.released`: the bundle it belongs to, what it needs beside the file, and training from it."""

import pytest
import torch

from conditions import GaussianFiltered, RegionWise
from lightning_modules.bases import SVD
from lightning_modules.released import load_released, read_tensors
from remoco.common.errors import UserError
from tests.support.commands import remoco
from tests.support.modules import data, trainer
from tests.support.nets import motion_control

BUNDLE = dict(condition=RegionWise(visibility_rule="block", motion_norm="squared"), lora="linear", rank=4)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(condition=RegionWise(motion_norm="squared")), "visibility_rule is pixel, expected block"),
        (dict(condition=RegionWise(visibility_rule="block")), "motion_norm is l2, expected squared"),
        (dict(condition=GaussianFiltered()), "class_path"),
        (dict(lora="attention"), "lora is attention, expected linear"),
        (dict(injection=["add"]), "injection is .*add.*, expected .*modulation"),
    ],
)
def test_another_bundle_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        motion_control(**{**BUNDLE, "start": ("motionpro", "motionpro.pt"), **changes})


def test_another_rank_is_refused(whole_file):
    with pytest.raises(UserError, match="control.rank is 8, .* has rank 4"):
        motion_control(**{**BUNDLE, "rank": 8}, start=("motionpro", whole_file)).configure_model()


def test_a_file_without_vae_needs_svd(parity, tmp_path):
    path = parity.write(tmp_path)
    with pytest.raises(UserError, match="holds no vae; give model.init_args.base"):
        motion_control(**BUNDLE, start=("motionpro", path)).configure_model()


def test_training_starts_from_the_file_and_exports_back(whole_file, sprites, tmp_path):
    """The whole way: file -> one step of training -> checkpoint -> released layout, frozen tensors bit for bit."""
    module = motion_control(**BUNDLE, start=("motionpro", whole_file), lr=1e-4, steps=2)
    module.configure_model()
    released = load_released(whole_file)
    assert all(torch.equal(t, module.motion_encoder.state_dict()[k]) for k, t in released.motion_encoder.items())
    trainer(tmp_path, 1).fit(module, data(sprites))
    assert remoco("convert", str(whole_file), str(tmp_path / "ours"), "--base") == 0
    assert isinstance(SVD(tmp_path / "ours").build(), SVD)
    out = tmp_path / "trained.pt"
    assert remoco("export", str(tmp_path / "last.ckpt"), str(out), "--base", str(tmp_path / "ours")) == 0
    before, after = read_tensors(whole_file), read_tensors(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name].to(before[name].dtype))}
    assert changed and all(".lora_" in name or ".flow_" in name or "flow_blocks" in name for name in changed)


def test_a_checkpoint_resumes_over_the_file(whole_file, sprites, tmp_path):
    def module():
        return motion_control(**BUNDLE, start=("motionpro", whole_file), lr=1e-4)

    trainer(tmp_path, 1).fit(module(), data(sprites))
    resumed = module()
    trainer(tmp_path, 2).fit(resumed, data(sprites), ckpt_path=str(tmp_path / "last.ckpt"))
    assert resumed.trainer.global_step == 2
