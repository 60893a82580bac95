"""Lightning still has what the exact resume leans on."""

from configparser import ConfigParser
from functools import reduce
from importlib.metadata import version

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from packaging.requirements import Requirement

from datamodules.lightning_internals import NEEDED, NEEDED_OF_CHECKPOINT, UnfinishedFitLoop


@pytest.mark.parametrize("where", NEEDED)
def test_a_trainer_has_what_the_resume_needs(where, tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    found = reduce(getattr, where.split("."), trainer)
    missing = [name for name in NEEDED[where] if not hasattr(found, name)]
    assert not missing, f"Lightning {version('lightning')} moved trainer.{where}.{missing[0]}"


def test_model_checkpoint_has_what_last_needs():
    missing = [name for name in NEEDED_OF_CHECKPOINT if not hasattr(ModelCheckpoint(), name)]
    assert not missing, f"Lightning {version('lightning')} moved ModelCheckpoint.{missing[0]}"


def test_the_fit_loop_asks_whether_to_skip():
    assert isinstance(vars(UnfinishedFitLoop.__base__)["skip"], property), f"Lightning {version('lightning')}"


def test_the_installed_lightning_is_in_the_tested_range(repo):
    settings = ConfigParser()
    settings.read(repo / "setup.cfg")
    wanted = [Requirement(line.split(";")[0]) for line in settings["options"]["install_requires"].split("\n") if line]
    allowed = next(one for one in wanted if one.name == "lightning").specifier
    assert any("<" in str(bound) for bound in allowed), "setup.cfg caps lightning at what was tested"
    assert allowed.contains(version("lightning"), prereleases=True)
