"""Order and resume: the sample at a position, and that Lightning draws each position exactly once."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.order import EachOnce, Order, PositionSampler, chain_hash, permutation
from datamodules.shards import Shards
from datamodules.sprites import SpritesDataModule
from remoco.common.errors import UserError


def test_hash_is_pinned():
    # A change here would silently reshuffle every run that is resumed.
    assert int(chain_hash(1, 2, 3)) == 15020427595393229491
    assert permutation(7, 5).tolist() == [2, 3, 6, 5, 1, 4, 0]


@pytest.mark.parametrize("counts", [[5], [3, 4, 1, 7, 2], [1] * 40])
def test_each_epoch_is_another_permutation_of_every_clip(counts):
    order = Order(np.array(counts), seed=3, window=2)
    clips = sorted((s, c) for s, n in enumerate(counts) for c in range(n))
    epochs = [[order.locate(e * len(order) + i) for i in range(len(order))] for e in range(3)]
    assert all(sorted(epoch) == clips for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_locate_does_not_depend_on_what_was_asked_before():
    counts = np.array([4, 6, 5, 3, 8])
    straight = [Order(counts, 1, window=2).locate(p) for p in range(80)]
    order = Order(counts, 1, window=2)
    backwards = [order.locate(p) for p in reversed(range(80))][::-1]
    assert straight == backwards == [Order(counts, 1, window=2).locate(p) for p in range(80)]
    assert straight != [Order(counts, 2, window=2).locate(p) for p in range(80)]


def test_a_window_of_shards_is_left_before_the_next_is_entered():
    order = Order(np.full(12, 10), seed=0, window=3)
    for begin in range(0, 120, 30):
        assert len({order.locate(p)[0] for p in range(begin, begin + 30)}) == 3


def test_replacement_is_pure_and_varies_with_the_attempt():
    order = Order(np.array([50, 50]), seed=7)
    first = [order.replacement(12, a) for a in range(1, 9)]
    assert first == [Order(np.array([50, 50]), seed=7).replacement(12, a) for a in range(1, 9)]
    assert len(set(first)) > 5
    assert order.candidate(12, 0) == order.locate(12) and order.candidate(12, 3) == order.replacement(12, 3)


def test_of_ten_thousand_shards_of_a_thousand_clips_one_window_is_permuted(monkeypatch):
    sizes = []
    monkeypatch.setattr("datamodules.order.permutation", lambda n, *words: sizes.append(n) or permutation(n, *words))
    order = Order(np.full(10_000, 1000), seed=0)
    places = {order.locate(p) for p in range(7_654_321, 7_654_321 + 500)}
    assert len(places) == 500
    assert sizes == [10_000, 16_000]  # the epoch's shards, and the clips of the window that the positions lie in


@pytest.mark.parametrize("world_size, batch_size", [(1, 4), (2, 2), (4, 1)])
def test_ranks_share_the_positions_of_a_global_batch(world_size, batch_size):
    ranks = [
        list(PositionSampler(batch_size, batches=3, start=lambda: 100, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    for batch in range(3):
        drawn = sorted(p for rank in ranks for p in rank[batch * batch_size : (batch + 1) * batch_size])
        assert drawn == list(range(100 + 4 * batch, 104 + 4 * batch))


@pytest.mark.parametrize("clips, world_size", [(5, 2), (1, 3), (1000, 6)])
def test_evaluation_sees_each_clip_once(clips, world_size):
    samplers = [EachOnce(clips, rank, world_size) for rank in range(world_size)]
    assert Counter(i for s in samplers for i in s) == Counter(range(clips))
    assert [len(s) for s in samplers] == [len(list(s)) for s in samplers]


class Recorder(LightningModule):
    """Records the positions of every batch that an optimizer step used, and the loop's own count of batches."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.drawn, self.stepped, self.progress, self.stop_at, self.validated = [], [], [], stop_at, []

    def training_step(self, batch, batch_idx):
        if (
            self.stop_at is not None
            and len(self.stepped) * self.trainer.accumulate_grad_batches + len(self.drawn) >= self.stop_at
        ):
            raise KeyboardInterrupt
        self.drawn.append(batch["position"].tolist())
        self.progress.append((batch_idx, self.trainer.num_training_batches))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated += batch["position"].tolist()

    def on_before_optimizer_step(self, optimizer):
        self.stepped.append([p for batch in self.drawn for p in batch])
        self.drawn = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("sprites"))


def data(root, **arguments):
    options = {
        "clips": 10,
        "val_clips": 3,
        "batch_size": 2,
        "num_workers": 0,
        "frames": 2,
        "height": 16,
        "width": 16,
        **arguments,
    }
    return SpritesDataModule(root, **options)


def fit(root, folder, resume=None, model=None, callbacks=(), loader=None, **trainer):
    model = model or Recorder()
    options = {
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        **trainer,
    }
    checkpoint = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    run = Trainer(callbacks=[checkpoint, *callbacks], enable_model_summary=False, **options)
    module = data(root, **(loader or {}))
    run.fit(model, module, ckpt_path=resume and str(resume))
    return run, model, module


def test_positions_run_on_through_epochs_and_max_steps_is_the_length(root, tmp_path):
    run, model, module = fit(root, tmp_path, max_steps=9, accumulate_grad_batches=2)
    assert model.stepped == [list(range(4 * s, 4 * s + 4)) for s in range(9)]
    assert model.progress == [(i, 18) for i in range(18)]
    assert module.state_dict() == {"version": 1, "position": 36}
    assert sorted(model.validated) == [0, 0, 1, 1, 2, 2]  # the sanity check, and once at the end


def test_epochs_are_whole_accumulation_windows_and_go_on_where_the_last_stopped(root, tmp_path):
    # 10 clips, 2 per batch, 2 batches per step: 3 steps, 6 batches
    run, model, _ = fit(root, tmp_path, max_epochs=2, accumulate_grad_batches=2)
    assert model.stepped == [list(range(4 * s, 4 * s + 4)) for s in range(6)]
    assert {length for _, length in model.progress} == {6} and run.current_epoch == 2


@pytest.mark.parametrize("step", [1, 4, 8])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_in_the_epoch(root, tmp_path, step, workers):
    fit(root, tmp_path, max_steps=9, accumulate_grad_batches=2)
    run, model, _ = fit(
        root,
        tmp_path,
        tmp_path / f"step={step}.ckpt",
        max_steps=9,
        accumulate_grad_batches=2,
        loader={"num_workers": workers},
    )
    assert model.stepped == [list(range(4 * s, 4 * s + 4)) for s in range(step, 9)]
    assert model.progress == [(i, 18) for i in range(2 * step, 18)] and run.global_step == 9


def test_resume_after_max_steps_was_raised(root, tmp_path):
    fit(root, tmp_path, max_steps=4)
    run, model, module = fit(root, tmp_path, tmp_path / "step=4.ckpt", max_steps=7)
    assert model.stepped == [[8, 9], [10, 11], [12, 13]]
    assert model.progress == [(4, 7), (5, 7), (6, 7)] and run.global_step == 7 and module.position == 14


@pytest.mark.parametrize("step", [2, 5, 7])
def test_resume_at_and_in_an_epoch(root, tmp_path, step):
    fit(root, tmp_path, max_epochs=2)  # 5 steps each
    run, model, _ = fit(root, tmp_path, tmp_path / f"step={step}.ckpt", max_epochs=2)
    assert model.stepped == [[2 * s, 2 * s + 1] for s in range(step, 10)] and run.current_epoch == 2


@pytest.mark.parametrize("limit", [{"max_steps": 9}, {"max_epochs": 3}])
def test_a_window_cut_short_is_redone(root, tmp_path, limit):
    saver = ModelCheckpoint(tmp_path, filename="cut", save_on_exception=True, every_n_train_steps=10**6)
    with pytest.raises(BaseException):  # noqa: B017 (however it stops)
        fit(root, tmp_path / "a", model=Recorder(stop_at=5), callbacks=[saver], accumulate_grad_batches=2, **limit)
    cut = next(tmp_path.glob("*cut*.ckpt"))
    run, model, _ = fit(root, tmp_path / "b", cut, accumulate_grad_batches=2, **limit)
    assert model.stepped == [list(range(4 * s, 4 * s + 4)) for s in range(2, 9)] and run.global_step == 9


@pytest.mark.parametrize("batch_size, accumulate", [(4, 1), (1, 1), (2, 2), (1, 4), (3, 2)])
@pytest.mark.parametrize("limit", [{"max_steps": 6}, {"max_epochs": 2}])
def test_other_batch_size_and_accumulation_go_on_at_the_position(root, tmp_path, batch_size, accumulate, limit):
    fit(root, tmp_path, max_steps=3)
    run, model, _ = fit(
        root,
        tmp_path,
        tmp_path / "step=3.ckpt",
        accumulate_grad_batches=accumulate,
        loader={"batch_size": batch_size},
        **limit,
    )
    size = batch_size * accumulate
    assert model.stepped == [list(range(6 + size * s, 6 + size * (s + 1))) for s in range(len(model.stepped))]
    assert len(model.stepped) >= 3 if "max_steps" in limit else len(model.stepped) >= 1


def test_limit_train_batches_must_hold_whole_windows(root, tmp_path):
    with pytest.raises(UserError, match="limit_train_batches: 3 batches"):
        fit(root, tmp_path, max_steps=4, accumulate_grad_batches=2, limit_train_batches=3)
    _, model, _ = fit(root, tmp_path, max_steps=4, accumulate_grad_batches=2, limit_train_batches=4)
    assert model.stepped == [list(range(4 * s, 4 * s + 4)) for s in range(4)]


# What is read


@pytest.fixture
def reads(monkeypatch):
    """(shard, clip) of every clip that is read."""
    found, read = [], Shards.read

    def counted(shards, shard, clip, kinds):
        found.append((str(shards.pattern), shard, clip))
        return read(shards, shard, clip, kinds)

    monkeypatch.setattr(Shards, "read", counted)
    return found


@pytest.mark.parametrize("step", [1, 3])
def test_resume_reads_nothing_twice(root, tmp_path, reads, step):
    options = {"num_sanity_val_steps": 0, "limit_val_batches": 0}
    fit(root, tmp_path, max_steps=step, **options)
    before = reads[:]
    assert len(before) == 2 * step
    fit(root, tmp_path, tmp_path / f"step={step}.ckpt", max_steps=5, **options)
    assert len(reads) == len(set(reads)) == 10  # one epoch: each clip once, over both runs
    assert not set(before) & set(reads[len(before) :])


@pytest.mark.parametrize("world_size, batch_size, workers", [(1, 4, 0), (1, 4, 2), (2, 2, 0), (2, 2, 1), (4, 1, 0)])
def test_the_clip_at_a_position_is_the_same_with_any_number_of_ranks_and_workers(root, world_size, batch_size, workers):
    module = data(root, batch_size=batch_size, num_workers=workers)
    module.prepare_data()
    module.setup()
    found = {}
    for rank in range(world_size):
        sampler = PositionSampler(batch_size, 3, lambda: 6, rank=rank, world_size=world_size)
        for batch in module._loader(module.train_set, batch_size, sampler):
            found.update(zip(batch["position"].tolist(), batch["key"]))
    expected = {p: module.train_set.shards.key(*module.train_set.order.locate(p)) for p in range(6, 18)}
    assert found == expected


def test_ten_thousand_shards_start_in_little_memory(repo):
    """Slack on purpose: 100 MB where 13 are used, and memory that does not grow with the windows gone through."""
    command = [sys.executable, str(repo / "benchmarks/index.py"), "--windows", "12"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert "for 10000000 clips" in lines[0]
    start, middle, end = (int(re.search(r"(\d+) MB", line)[1]) for line in lines[:3])
    assert start < 100 and end < 100 and end - middle < 20
