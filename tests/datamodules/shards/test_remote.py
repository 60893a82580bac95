"""Shards behind HTTP and in an S3 store: the same samples as on disk, to the bit, through dropped connections."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from itertools import islice

import pytest
import torch

from datamodules.prepare.verify import verify_shards
from datamodules.scenes.clips import sprite
from datamodules.shards import INDEX, ClipShape, Shards, remote, write_index
from datamodules.shards.remote import RangeCache, Remote
from datamodules.shards.writer import ShardWriter
from datamodules.webvid import WebVidDataModule
from remoco.common.errors import UserError
from tests.support.commands import prepare
from tests.support.range_server import RangeServer
from tests.support.videos import write_video

SHAPE = ClipShape(frames=3, height=16, width=24, fps=8.0)
CLIPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of sprites; one member of clip 5 has changed since it was written."""
    folder = tmp_path_factory.mktemp("shards")
    entries = []
    for first in range(0, CLIPS, 4):
        with ShardWriter(folder / f"{first:05d}-000.tar") as writer:
            for number in range(first, first + 4):
                writer.write(f"clip-{number}", sprite(SHAPE, [number]))
        entries.append(writer.entry)
    write_index(folder, SHAPE, entries)
    shards = Shards(folder)
    offset = int(shards._sidecar(1)["members"]["flow.z"][1][0])
    with open(shards.path(1), "r+b") as file:
        file.seek(offset + 40)
        file.write(b"changed")
    return folder


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "WAIT", 0.01)


def module(shards, **arguments):
    return WebVidDataModule(
        str(shards), batch_size=3, num_workers=0, frames=3, height=16, width=24, seed=3, **arguments
    )


def batches(shards, count=8, begin=0, **arguments):
    """A little over an epoch and a half from a position on."""
    data = module(shards, **arguments)
    data.load_state_dict({"position": begin})
    return list(islice(data.train_dataloader(), count))


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert one.keys() == other.keys() and one["key"] == other["key"]
        assert all(torch.equal(one[name], other[name]) for name in one if name != "key")


def test_dropped_connections_change_no_bit(folder):
    expected = batches(folder, 4) + batches(folder, 4, begin=12)
    assert any(int(batch["replaced"].sum()) for batch in expected)  # clip 5, the same replacement from both
    with RangeServer(folder, drop_every=3) as server:
        found = batches(server.url, 4) + batches(server.url, 4, begin=12)
        assert_equal(found, expected)
        assert server.dropped > 5 and verify_shards(f"{server.url}/00000-000.tar", 1) == []
        bad = [line.replace(server.url, str(folder)) for line in verify_shards(server.url, 1)]
        assert len(bad) == 2 and bad == verify_shards(str(folder), 1)


def test_several_ranges_are_in_flight_and_one_is_asked_per_clip(folder):
    with RangeServer(folder) as server:
        data = module(f"{server.url}/{{00000,00008}}-000.tar")
        next(iter(data.train_dataloader()))  # sidecars
        before, server.together = server.answers, 3
        next(iter(data.train_dataloader()))
        assert server.answers - before == 3 and server.most_busy == 3


def test_an_outage_passes_or_stops_the_run_and_is_no_bad_clip(folder, monkeypatch):
    with RangeServer(folder) as server:
        data = module(server.url)
        loader = iter(data.train_dataloader())
        first = next(loader)
        server.down = True
        monkeypatch.setattr(remote, "TRIES", 3)
        with pytest.raises(UserError, match=r"does not read after 3 tries.*503"):
            next(loader)
        server.down = False
        assert_equal([first, *batches(server.url, 1, begin=3)], batches(folder, 2))


def test_what_is_not_there(folder, tmp_path):
    with RangeServer(folder) as server:
        with pytest.raises(UserError, match=r"/no/index.json is missing"):
            Shards(f"{server.url}/no")
        with pytest.raises(UserError, match="does not list 00099-000.tar"):
            Shards(f"{server.url}/00099-000.tar")
    with pytest.raises(UserError, match="nosuch"):
        Shards("nosuch://bucket/set")
    copy = tmp_path / "set"
    shutil.copytree(folder, copy)
    (copy / "00008-000.tar").unlink()
    with RangeServer(copy) as server:
        assert_equal(batches(server.url, 2), batches(copy, 2))


def test_the_cache_serves_a_second_epoch_and_keeps_its_bound(folder, tmp_path):
    expected = batches(folder, 8)
    with RangeServer(folder) as server:
        assert_equal(batches(server.url, 8, cache=str(tmp_path / "c")), expected)
        for path in (tmp_path / "c").glob("??/*"):  # a cache that lies: checked, and asked again
            path.write_bytes(path.read_bytes()[:-7])
            break
        assert_equal(batches(server.url, 8, cache=str(tmp_path / "c")), expected)
        ranges = server.answers
        assert_equal(batches(server.url, 8, cache=str(tmp_path / "c")), expected)
        assert server.answers - ranges <= 4 + 2 * 3  # index, sidecars, and the clip that is bad in the store
    cache = RangeCache(tmp_path / "small", 1000)
    for number in range(30):
        cache.put(str(number), bytes(100))
        time.sleep(0.002)
    kept = [number for number in range(30) if cache.get(str(number)) is not None]
    assert kept == list(range(20, 30))


@pytest.fixture(scope="module")
def s3():
    """An S3 server of this machine with an empty bucket; its URL."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        endpoint = next(line.split()[-1] for line in process.stdout if "http://127.0.0.1" in line)
        variables = {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield "s3://bucket"
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_prepare_writes_to_s3_what_it_writes_to_disk(s3, tmp_path, monkeypatch, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        write_video(videos / f"{number}.mp4")
    (videos / "bad.mp4").write_bytes(b"none")
    options = ["--frames", 3, "--fps", 6, "--height", 64, "--width", 64, "--clips-per-shard", 2, "--workers", 1]
    assert prepare(videos, tmp_path / "local", *options) == 0
    there = [videos, f"{s3}/new", *options, "--work", tmp_path / "work"]
    uploads = []

    def upload(self, file, whole=Remote.upload):
        if len(uploads) == 3:
            raise UserError("the store is gone")
        uploads.append(self.name)
        whole(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", upload)
        assert prepare(*there) != 0 and "the store is gone" in capsys.readouterr().err
    assert not Remote(f"{s3}/new/{INDEX}").exists()
    assert prepare(*there) == 0 and prepare(*there) == 0
    for path in (tmp_path / "local").iterdir():
        if path.is_file() and not path.name.startswith("."):
            assert Remote(f"{s3}/new/{path.name}").read_bytes() == path.read_bytes()
    assert not list((tmp_path / "work").glob("*.tar"))
    # in a process of its own: workers here may come from a server that another test started without the credentials
    assert subprocess.run([sys.executable, "-m", "remoco", "verify", f"{s3}/new"]).returncode == 0
    write_video(videos / "bad.mp4")
    assert prepare(*there, "--retry") == 0 and len(Shards(f"{s3}/new")) == 4
    assert prepare(*there[:-1], tmp_path / "other") != 0 and "there is a set already" in capsys.readouterr().err
    assert prepare(*there[:-2]) == 2 and "--work is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_s3_reads_as_the_disk_does(folder, s3):
    for path in folder.iterdir():
        Remote(f"{s3}/set/{path.name}").upload(path)
    assert_equal(batches(f"{s3}/set", 8), batches(folder, 8))
    assert_equal(batches(f"{s3}/set/000*.tar", 3), batches(folder, 3))
    assert Remote(f"{s3}/set/{INDEX}").exists() and not Remote(f"{s3}/set/other").exists()
    with pytest.raises(UserError, match="index.json is missing"):
        Shards(f"{s3}/none")
