"""A run over batches with text, killed and resumed, against one that was not."""

from __future__ import annotations

import pytest
import torch
import yaml

from datamodules.scenes.clips import sprite
from datamodules.shards import CAPTION, ClipShape, write_index
from datamodules.shards.writer import ShardWriter
from tests.support import wan
from tests.support.commands import remoco
from tests.support.forks import lightnings
from tests.support.recorder import read
from tests.support.same import same

SHAPE = ClipShape(5, 32, 48, 8.0)
TEXTS = ["red dog", "", "dog", "dog dog red", "red", "dog red"]


@pytest.fixture
def config(tmp_path):
    """A tiny Wan over clips with cached texts of several lengths, half of which a step drops."""
    base, shards = wan.write(tmp_path / "base", "tiny_i2v"), tmp_path / "shards"
    shards.mkdir()
    entries = []
    for number in range(2):
        with ShardWriter(shards / f"{number:05d}.tar") as writer:
            for clip in range(3):
                text = TEXTS[3 * number + clip].encode()
                writer.write(f"clip-{number}-{clip}", {**sprite(SHAPE, [number, clip]), CAPTION: text})
        entries.append(writer.entry)
    write_index(shards, SHAPE, entries)
    assert remoco("cache", shards, tmp_path / "cache", "--base", base, "--device", "cpu") == 0
    parts = {
        "base": {"class_path": "lightning_modules.bases.Wan", "init_args": {"path": str(base)}},
        "condition": {"class_path": "conditions.RegionWise", "init_args": {"region_size": 16, "min_mask_ratio": 0.5}},
        "control": {"injection": ["modulation"], "lora": "attention", "rank": 2},
        "noise": {"dropout": 0.5},
    }
    data = {
        "shards": str(tmp_path / "cache"), "batch_size": 2, "num_workers": 1, "frames": 5, "height": 32, "width": 48,
        "seed": 3,
    }  # fmt: skip
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 9, "precision": "bf16-mixed", "log_every_n_steps": 1,
            "limit_val_batches": 0, "enable_progress_bar": False, "enable_model_summary": False,
            "plugins": [{"class_path": "callbacks.AtomicCheckpointIO"}],
            "callbacks": [
                {"class_path": "callbacks.RunFolder"},
                {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}},
            ],
        },
        "model": {"class_path": "lightning_modules.MotionControlModule", "init_args": parts},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        "data": {"class_path": "datamodules.WebVidDataModule", "init_args": data},
    }  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_bits_of_a_run_that_was_not(config, tmp_path):
    """Killed in an epoch, then in another one, each time a step after what was saved; and the texts are of account."""
    with lightnings() as lightning:

        def fit(name, code, kill_at=0, resumed=False, **data):
            recorder = {"path": str(tmp_path / f"{name}.jsonl"), "kill_at": kill_at}
            trainer = config["trainer"] | {
                "logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "runs", "name": name, "version": ""},
                },
                "callbacks": [
                    *config["trainer"]["callbacks"],
                    {"class_path": "tests.support.recorder.Recorder", "init_args": recorder},
                ],
            }
            clips = {**config["data"], "init_args": config["data"]["init_args"] | data}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config | {"trainer": trainer, "data": clips}))
            more = ["--ckpt_path", "last"] if resumed else []
            ended, said = lightning("fit", "--config", tmp_path / f"{name}.yaml", *more, cwd=tmp_path)
            assert ended == code, said

        fit("whole", 0)
        fit("killed", -9, kill_at=3)
        fit("killed", -9, kill_at=7, resumed=True)
        fit("killed", 0, resumed=True)
        fit("untold", 0, shards=str(tmp_path / "shards"))
    states = {
        name: torch.load(tmp_path / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
        for name in ("whole", "killed", "untold")
    }
    for part in ("global_step", "state_dict", "optimizer_states"):
        assert same(states["whole"][part], states["killed"][part]), part
    assert not same(states["whole"]["state_dict"], states["untold"]["state_dict"])
    whole, killed = read(tmp_path / "whole.jsonl"), read(tmp_path / "killed.jsonl")
    assert [line["step"] for line in killed] == [1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9]
    assert all(line == whole[line["step"] - 1] for line in killed)
