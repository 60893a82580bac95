"""What is made as it is needed: the bits of the written shards, each clip once a run, and nothing left behind."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from datamodules import SpritesDataModule, sprites
from datamodules.made_once import Address, MadeOnce
from datamodules.order import PositionSampler
from datamodules.scenes import clips
from tests.support.making import ask, die_making

LINUX = pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes share what is made through /proc")


def data(root=None, **changes):
    options = dict(clips=70, val_clips=5, batch_size=8, num_workers=0, frames=2, height=16, width=16)
    module = SpritesDataModule(None if root is None else str(root), **{**options, **changes})
    module.prepare_data()
    module.setup()
    return module


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert equal, name


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("sprites")


@pytest.fixture
def numbers(monkeypatch):
    """Numbers of the clips that this process makes."""
    made, make = [], clips.sprite

    def counted(shape, seed, kind):
        made.append(tuple(seed))
        return make(shape, seed, kind)

    monkeypatch.setattr(clips, "sprite", counted)
    return made


@pytest.mark.parametrize("scene", ["textured", "plain", "varied"])
def test_two_epochs_have_the_bits_of_the_written_shards(written, numbers, scene):
    """70 clips are two shards; the second epoch's order is another, and validation comes between them."""
    shards, made = data(written, scene=scene), data(scene=scene)
    numbers.clear()
    for _ in range(2):
        for one, other in ((shards, made), (shards.val_dataloader(), made.val_dataloader())):
            loaders = [each.train_dataloader() if one is shards else each for each in (one, other)]
            batches = [list(loader) for loader in loaders]
            assert len(batches[0]) == len(batches[1])
            for pair in zip(*batches):
                same(*pair)
        for module in (shards, made):
            module.load_state_dict({"version": 1, "position": 70})
    assert len(numbers) == len(set(numbers)) == 75


@LINUX
@pytest.mark.parametrize("ranks, workers, position", [(1, 2, 0), (2, 1, 37)])
def test_workers_and_ranks_from_any_position_make_each_clip_once(written, numbers, ranks, workers, position):
    shards, made = data(written), data(num_workers=workers)
    for rank in range(ranks):
        samplers = [PositionSampler(8 // ranks, 9, lambda: position, rank=rank, world_size=ranks) for _ in range(2)]
        loaders = [
            module._loader(module.train_set, 8 // ranks, sampler) for module, sampler in zip((shards, made), samplers)
        ]
        for one, other in zip(*map(list, loaders), strict=True):
            same(one, other)
    numbers.clear()
    for each in range(position, position + 72):  # the workers have made and kept them
        made.train_set[each]
    assert numbers == []


@LINUX
def test_processes_that_ask_at_once_make_it_once(tmp_path):
    made, log = MadeOnce(20), tmp_path / "log"
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(3)
    asking = [context.Process(target=ask, args=(made, barrier, log)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
        assert process.exitcode == 0
    assert sorted(map(int, log.read_text().split())) == list(range(20))


@LINUX
def test_a_worker_that_is_killed_while_it_makes_a_clip_holds_up_nobody():
    made = MadeOnce(1)
    process = multiprocessing.get_context("forkserver").Process(target=die_making, args=(made,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert made.get(0, lambda: b"one") == b"one" == made.get(0, lambda: b"two")


def test_nothing_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    made = data()
    assert len(list(made.train_dataloader())) == 9
    store = made.train_set.shards.made
    assert os.fstat(store._file.fileno()).st_size > 70 * 1000
    assert os.listdir(tmp_path) == ["temporary"] and os.listdir(tmp_path / "temporary") == []


def test_what_does_not_fit_or_cannot_be_kept_is_made_again(tmp_path, monkeypatch):
    small = MadeOnce(3, limit=3 * 16 + 150)
    for answer in (b"a", b"b"):
        assert [small.get(n, lambda: answer * 100) for n in range(2)] == [b"a" * 100, answer * 100]  # noqa: B023
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    nowhere = MadeOnce(3)
    assert nowhere.address is None and [nowhere.get(0, lambda: each) for each in (b"a", b"b")] == [b"a", b"b"]  # noqa: B023


@LINUX
def test_ranks_share_the_store_of_the_first_on_their_machine(numbers):
    first = data()
    given = []

    def broadcast(address, src):
        given.append(src)
        return first.train_set.shards.made.address if len(given) == 2 else first.val_set.shards.made.address

    for node, shares in ((0, False), (1, True)):  # four ranks on two machines
        given.clear()
        second = SpritesDataModule(clips=70, val_clips=5, batch_size=8, num_workers=0, frames=2, height=16, width=16)
        strategy = SimpleNamespace(broadcast=broadcast)
        second.trainer = SimpleNamespace(world_size=4, num_nodes=2, node_rank=node, strategy=strategy)
        second.setup()
        assert given == [0, 2, 0, 2]
        first.train_set[5]
        numbers.clear()
        same(first.train_set[5], second.train_set[5])
        assert bool(numbers) != shares


@LINUX
def test_another_file_at_the_address_is_left_alone(tmp_path):
    """As where each rank has a container of its own: the same process number is another process there."""
    (tmp_path / "theirs").write_bytes(b"theirs")
    made = MadeOnce(1)
    for path in (tmp_path / "theirs", tmp_path / "none"):
        made.join(Address(str(path), made.address.device, made.address.inode + 1))
    made.get(0, lambda: b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_the_settings_say_which_clips_they_are():
    """For a resume: another seed of the scenes or kind of scene is named."""
    names = sprites.SpritesDataModule(data_seed=3, scene="plain").settings()
    assert names["data_seed"] == 3 and names["scene"] == "plain"
