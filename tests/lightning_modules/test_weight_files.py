"""Every layout of a base loads by its path and by its hub id, from a hub on loopback and from the cache alone."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel, WanTransformer3DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from lightning_modules.bases import SVD, Wan
from lightning_modules.bases.svd.weights import COMPONENTS
from lightning_modules.bases.weight_files import STEMS, located, weight_files
from remoco.common.errors import UserError
from tests.support.forks import Forks
from tests.support.nets import random_svd

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIN = {
    "unet": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "image_encoder": "pytorch_model.bin",
}


def half(state):
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def whole(state, folder, name):
    save_file(state, folder / f"{STEMS[name]}.safetensors", {"format": "pt"})


def fp16(state, folder, name):
    save_file(half(state), folder / f"{STEMS[name]}.fp16.safetensors", {"format": "pt"})


def pickled(state, folder, name):
    torch.save(state, folder / BIN[name])


def sharded(state, folder, name, variant="", index=True):
    keys, listed = sorted(state), {}
    for number, names in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        file = f"{STEMS[name]}{variant}-{number:05d}-of-00002.safetensors"
        save_file({key: state[key] for key in names}, folder / file, {"format": "pt"})
        listed |= dict.fromkeys(names, file)
    if index:
        (folder / f"{STEMS[name]}.safetensors.index{variant}.json").write_text(
            json.dumps({"metadata": {}, "weight_map": listed})
        )


def unlisted(state, folder, name):
    (sharded(state, folder, name, index=False) if name == "unet" else whole(state, folder, name))


LAYOUTS = {
    "full": whole,
    "fp16_only": fp16,
    "mixed": lambda *given: (fp16 if given[2] == "unet" else whole)(*given),
    "both": lambda *given: (fp16(*given), whole(*given)),
    "sharded": sharded,
    "sharded_fp16": lambda state, *given: sharded(half(state), *given, variant=".fp16"),
    "unlisted": unlisted,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folder of bases, one for each layout, and `bin` of pickles alone."""
    root = tmp_path_factory.mktemp("bases")
    random_svd("tiny", seed=3).export(root / "source")
    for layout, write in {**LAYOUTS, "bin": pickled}.items():
        for name, stem in ((name, STEMS[name]) for name in COMPONENTS):
            (root / layout / name).mkdir(parents=True)
            shutil.copy(root / "source" / name / "config.json", root / layout / name)
            write(load_file(root / "source" / name / f"{stem}.safetensors"), root / layout / name, name)
    for extra in ("model_index.json", "svd.safetensors", "scheduler/config.json", "vae/diffusion_pytorch_model.bin"):
        (root / "full" / extra).parent.mkdir(exist_ok=True)
        (root / "full" / extra).write_text("{}")  # what a whole snapshot holds besides
    return root


class Hub(BaseHTTPRequestHandler):
    """`/OWNER/NAME/resolve/REVISION/FILE` and the list of files, as the hub answers them."""

    root: Path
    asked: list[str] = []

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            found = [p for p in (self.root / parts[3]).rglob("*") if p.is_file()]
            names = [path.relative_to(self.root / parts[3]).as_posix() for path in found]
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
            siblings = {"id": "field/x", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self.answer(200, json.dumps(tree if "tree" in parts else siblings).encode(), body)
        _, repo, _, revision, *file = parts
        path = self.root / repo / "/".join(file)
        if not (self.root / repo).is_dir():
            return self.answer(404, b"", body, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT, "v2"):
            return self.answer(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
        if not path.is_file():
            return self.answer(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        return self.answer(200, path.read_bytes(), body, {"ETag": f'"{repo}-{"-".join(file)}"'})

    def answer(self, code, data, body, headers=()):
        self.send_response(code)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": len(data), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)


def files(base, revision=None, offline=False):
    """In a forked process, whose hub is on loopback: print the hashes of what is read, or why nothing is."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    try:
        print("found", json.dumps(hashes(located(base, COMPONENTS, revision))))
    except UserError as error:
        print("error", error)


def hashes(folder) -> dict[str, str]:
    """File -> SHA-256 of what is read of a base."""
    found = [
        path for name in COMPONENTS for path in (folder / name / "config.json", *weight_files(folder / name, name))
    ]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def load(base, revision=None, offline=False):
    """In a forked process, whose hub is on loopback: print the base's hash, or the one line why not."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    torch.set_num_threads(1)
    try:
        print("found", json.dumps(SVD(base, revision).build().identity["hash"]))
    except UserError as error:
        print("error", error)


@pytest.fixture(scope="module")
def hub(bases, tmp_path_factory):
    """`files` or `load` of a base in a process with an empty cache and the hub of `bases`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"root": bases}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    patch.setenv("HF_HUB_CACHE", str(cache))
    patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    patch.setenv("HF_HUB_DISABLE_XET", "1")
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    with Forks("tests.lightning_modules.test_weight_files") as forks:

        def run(base, function="files", **options):
            assert forks.run(function, str(base), **options) == 0, forks.said
            kind, _, rest = forks.said.strip().splitlines()[-1].partition(" ")
            assert kind in ("found", "error"), forks.said
            return json.loads(rest) if kind == "found" else rest

        run.cache = cache
        yield run
    patch.undo()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_by_path_and_by_hub_id(bases, hub, layout):
    by_path = hashes(bases / layout)
    assert hub(f"field/{layout}") == by_path
    kept = {path.name for path in (hub.cache / f"models--field--{layout}").rglob("*") if path.is_symlink()}
    assert kept == {Path(name).name for name in by_path} | {name for name in kept if name.endswith(".index.json")} | {
        name for name in kept if ".index.fp16.json" in name
    }  # nothing that loading does not need
    assert hub(f"field/{layout}", offline=True) == by_path  # from the cache


def test_the_parts_of_a_hub_id_are_the_whole(bases, hub):
    full, halved = (SVD(bases / layout).build().identity["hash"] for layout in ("full", "fp16_only"))
    assert hub("field/sharded", function="load") == full != halved
    assert hub("field/sharded_fp16", function="load", offline=True) == halved
    assert hub("field/both", function="load", offline=True) == full


def test_revisions(bases, hub):
    by_path = hashes(bases / "full")
    for revision in ("v2", COMMIT):
        assert hub("field/full", revision=revision) == by_path
    shutil.rmtree(hub.cache / "models--field--full" / "refs")
    assert hub("field/full", revision=COMMIT, offline=True) == by_path
    said = hub("field/full", offline=True)
    assert "revision main is not whole in the cache" in said and COMMIT in said
    assert "it has no revision v9" in hub("field/full", revision="v9")


def test_pickles_are_refused_with_the_reason(bases, hub):
    with pytest.raises(UserError) as error:
        SVD(bases / "bin").build()
    for said, where in ((str(error.value), str(bases / "bin")), (hub("field/bin"), "field/bin")):
        assert ".bin alone, a pickle, which could run code and is never opened" in said and where in said
        assert "expected model.safetensors" in said or "expected diffusion_pytorch_model.safetensors" in said
        assert "\n" not in said
    assert not list((hub.cache / "models--field--bin").rglob("*.bin"))


def test_what_the_hub_lacks_is_one_line(hub):
    assert hub("field/none") == (
        "base: cannot load unet of the hub id field/none: there is no such repository, or it is private and needs "
        "`hf auth login`"
    )
    assert "the hub was not reached" in hub("field/never", offline=True)


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x.safetensors"}}',
              "[" * 100_000, '{"weight_map": {"a": "diffusion_pytorch_model.bin"}}'],
)  # fmt: skip
def test_a_bad_index_is_one_line(bases, tmp_path, index):
    copy = shutil.copytree(bases / "sharded", tmp_path / "svd")
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="cannot load unet .*lists no .safetensors files") as error:
        SVD(copy).build()
    assert "\n" not in str(error.value)


def test_an_index_decides_which_parts_count(bases, tmp_path):
    """Parts of another split lie beside them; a part that is not there is named."""
    copy = shutil.copytree(bases / "sharded", tmp_path / "svd")
    shutil.copy(
        copy / "image_encoder" / "model-00001-of-00002.safetensors",
        copy / "unet" / "diffusion_pytorch_model-00001-of-00003.safetensors",
    )
    assert SVD(copy).build().identity["hash"] == SVD(bases / "source").build().identity["hash"]
    (copy / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="diffusion_pytorch_model-00002-of-00002.safetensors"):
        SVD(copy).build()


@pytest.mark.parametrize("base", [SVD, Wan])
def test_a_configuration_of_the_hub_is_checked_before_anything_is_built_of_it(base, tmp_path, monkeypatch):
    """It says how many layers there are: here too many to be built even without memory for weights."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for name in ("unet", "transformer", "vae"):
        folder = repository / "snapshots" / COMMIT / name
        folder.mkdir(parents=True)
        many = {"num_layers": 1 << 20, "layers_per_block": 1 << 20}
        config = {**many, "in_channels": 4, "out_channels": 4, "is_residual": True}
        (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kind = WanTransformer3DModel if base is Wan else UNetSpatioTemporalConditionModel
    monkeypatch.setattr(kind, "from_config", lambda *_: pytest.fail("it was built"))
    with pytest.raises(UserError, match="config.json: its counts of layers multiply to more than") as error:
        base("owner/name").layout()
    assert "\n" not in str(error.value)


def test_one_file_is_told_from_a_folder(bases):
    with pytest.raises(UserError, match=r"svd.safetensors is one file, expected a folder with unet/"):
        SVD(bases / "full" / "svd.safetensors").build()


@pytest.mark.slow
def test_the_shared_layouts(shared, tmp_path, hub, repo):
    maker = shared / "cases" / "gen_weights.py"
    if not maker.exists():
        pytest.skip("the makers of inputs are not in `shared`")
    environment = {**os.environ, "PYTHONPATH": str(repo), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(maker), str(tmp_path)], check=True, capture_output=True, env=environment)
    for made in (tmp_path / "hub").iterdir():
        shutil.copytree(made, hub.cache / made.name, symlinks=True)
    cached = {"svd": "whole_hub", "fp16": "fp16_only", "noref": "full"}
    for name in ("full", "fp16_only", "sharded", "mixed", "whole_hub", *cached):
        options = {"revision": COMMIT, "offline": True} if name in cached else {}
        found = hub(f"field/{name}" if name in cached else tmp_path / name, **options)
        assert found == hashes(tmp_path / cached.get(name, name)), name
    assert "a pickle" in hub(tmp_path / "bin_only", function="load")
    assert "is one file" in hub(tmp_path / "single/svd.safetensors")


def test_loading_shows_no_bar_and_leaves_the_users_setting(capfd):
    enabled = logging.is_progress_bar_enabled()
    SVD("embedded-sprites").build()
    assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled() == enabled
