"""The run's folder: a second run moves the first aside, a resumed one goes on, and it says where things are."""

import os
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import AtomicCheckpointIO, LastCheckpoint, RunFolder, SaveRunConfig, resolve_checkpoint
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import Data, Module, trainer


def fit(folder, max_steps=4, ckpt_path=None, **kwargs):
    callbacks = [RunFolder(), LastCheckpoint(2)]
    run = trainer(folder, callbacks, max_steps=max_steps, plugins=[AtomicCheckpointIO()], **kwargs)
    run.fit(Module(), datamodule=Data(), ckpt_path=resolve_checkpoint(run, ckpt_path))


def logged_steps(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder)).Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_a_second_run_moves_the_first_aside(tmp_path, capsys):
    fit(tmp_path)
    first = (tmp_path / "run/checkpoints/last.ckpt").read_bytes()
    fit(tmp_path, max_steps=2)
    said = capsys.readouterr().out
    assert f"is now {tmp_path / 'run.previous-1'}" in said
    assert (tmp_path / "run.previous-1/checkpoints/last.ckpt").read_bytes() == first
    assert logged_steps(tmp_path / "run.previous-1") == [0, 1, 2, 3]
    assert logged_steps(tmp_path / "run") == [0, 1]
    fit(tmp_path, max_steps=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous-1", "run.previous-2"]


def test_a_resumed_run_stays(tmp_path):
    fit(tmp_path)
    fit(tmp_path, max_steps=6, ckpt_path="last")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert logged_steps(tmp_path / "run") == list(range(6))


def test_a_checkpoint_of_another_run_starts_a_new_one(tmp_path):
    fit(tmp_path / "a")
    fit(tmp_path / "b")
    fit(tmp_path / "b", max_steps=6, ckpt_path=str(tmp_path / "a/run/checkpoints/last.ckpt"))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["run", "run.previous-1"]


class Killed(Callback):
    """Ends the fit as a kill would, before a hook of the run's folder."""

    def __init__(self, hook, step=0):
        self.step = step
        setattr(self, hook, self._end)

    def _end(self, trainer, *args):
        if trainer.global_step == self.step and not trainer.sanity_checking:
            raise SystemExit(9)


def killed(folder, hook, step=0, **kwargs):
    callbacks = [RunFolder(), Killed(hook, step), LastCheckpoint(50)]
    run = trainer(folder, callbacks, plugins=[AtomicCheckpointIO()], **kwargs)
    with pytest.raises(SystemExit):
        run.fit(Module(), datamodule=Data())
    (folder / "run/config.yaml").write_text("")  # as `SaveRunConfig` does at the beginning
    for events in (folder / "run").glob("events*"):
        events.rename(events.with_name("events.out.tfevents.1.host.0.0"))  # of another process


@pytest.mark.parametrize(
    "hook, step, log", [("on_train_start", 0, 1), ("on_train_batch_start", 0, 1), ("on_train_batch_end", 3, 50)]
)
def test_what_was_killed_before_it_left_anything_is_no_run(tmp_path, hook, step, log):
    killed(tmp_path, hook, step, log_every_n_steps=log, val_check_interval=8)
    killed(tmp_path, hook, step, log_every_n_steps=log, val_check_interval=8)
    fit(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and logged_steps(tmp_path / "run") == [0, 1, 2, 3]
    assert len(list((tmp_path / "run").glob("events*"))) == 1
    killed(tmp_path, "on_train_start")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous-1"]
    fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous-1"]
    assert (tmp_path / "run.previous-1/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("hook, step, validate", [("on_train_batch_start", 1, 8), ("on_train_batch_start", 4, 4)])
def test_what_was_killed_after_it_logged_is_moved_aside(tmp_path, hook, step, validate):
    log = 1 if step == 1 else 50
    killed(tmp_path, hook, step, log_every_n_steps=log, val_check_interval=validate, max_steps=8)
    fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous-1"]


def test_a_marker_of_an_earlier_version_is_of_a_run(tmp_path):
    killed(tmp_path, "on_train_start")
    (tmp_path / "run/.run").write_text('{"loggers": {}}')
    fit(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.previous-1"]


def test_it_says_where_everything_is(tmp_path, capsys):
    fit(tmp_path)
    said = capsys.readouterr().out
    assert str(tmp_path / "run/checkpoints") in said
    assert f"tensorboard --logdir {tmp_path / 'run'}" in said


def test_an_evaluation_touches_nothing(tmp_path):
    fit(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    trainer(tmp_path, [RunFolder()]).validate(Module(), datamodule=Data(), verbose=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_fit_without_logger_or_as_a_try_moves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("mine")
    for kwargs in ({"logger": False}, {"fast_dev_run": True}):
        trainer(tmp_path, [RunFolder()], **kwargs).fit(Module(), datamodule=Data())
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_the_working_directory_is_never_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="contains the working directory"):
        fit(tmp_path, logger=TensorBoardLogger(str(tmp_path), name="", version=""))


def test_a_failed_fit_gives_the_folder_back(tmp_path):
    callback = RunFolder()
    run = trainer(tmp_path, [callback])
    with pytest.raises(TypeError):
        run.fit(Module(), train_dataloaders=[["no batch"]])
    assert callback._lock is None


YAML = """
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  val_check_interval: 2
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args:
      save_dir: runs
      name: test
      version: ""
  plugins:
  - class_path: callbacks.AtomicCheckpointIO
  callbacks:
  - class_path: callbacks.RunFolder
  - class_path: callbacks.EMA
    init_args:
      decay: 0.9
  - class_path: callbacks.Evaluation
    init_args:
      samples: {clips: 2, every_n_steps: 3}
      metrics: {clips: 4}
  - class_path: callbacks.Throughput
  - class_path: callbacks.LastCheckpoint
    init_args:
      every_n_train_steps: 2
  - class_path: callbacks.BestCheckpoint
model:
  class_path: tests.support.callbacks_stand_in.Module
data:
  class_path: tests.support.callbacks_stand_in.Data
"""


class CLI(LightningCLI):
    def before_fit(self):
        path = resolve_checkpoint(self.trainer, self.config_init.fit.ckpt_path)
        self.config_init.fit.ckpt_path = path


def cli(*args):
    CLI(args=list(args), save_config_callback=SaveRunConfig, save_config_kwargs={"overwrite": True})


def test_from_yaml_all_callbacks_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(YAML)
    cli("fit", "--config", "config.yaml")
    assert {"checkpoints", "samples", "config.yaml"} <= set(os.listdir("runs/test"))
    assert sorted(os.listdir("runs/test/checkpoints")) == ["best.ckpt", "last.ckpt"]
    assert sorted(os.listdir("runs/test/samples")) == ["step-000002", "step-000003", "step-000004"]
    saved = Path("runs/test/config.yaml").read_text()

    cli("fit", "--config", "runs/test/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert os.listdir("runs") == ["test"]
    cli("validate", "--config", "runs/test/config.yaml", "--ckpt_path", "runs/test/checkpoints/last.ckpt")
    assert "max_steps: 6" in Path("runs/test/config.yaml").read_text()
    assert Path("runs/test/config_validate.yaml").is_file()
    assert "step-000006" in os.listdir("runs/test/samples")  # a validation knows the step of its checkpoint

    cli("fit", "--config", "config.yaml", "--trainer.max_steps", "2")
    assert sorted(os.listdir("runs")) == ["test", "test.previous-1"]
    assert "max_steps: 2" in Path("runs/test/config.yaml").read_text()
    assert "max_steps: 4" in saved and "max_steps: 6" in Path("runs/test.previous-1/config.yaml").read_text()
    with pytest.raises(UserError, match="ckpt_path last"):
        cli("fit", "--config", "config.yaml", "--ckpt_path", "last", "--trainer.logger.init_args.name", "new")
    assert "new" not in os.listdir("runs")
