"""`remoco card`: a controller with its card, here and on a hub on loopback; read back from there and the cache."""

import json
import os

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from callbacks.strips import write_mp4, write_png
from lightning_modules.hub import upload
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.restorable import average_of
from remoco.card_text import Licences, base_licence, card, public
from remoco.cli import main
from remoco.common.errors import UserError
from tests.support import strangers
from tests.support.forks import Forks
from tests.support.hub_server import HubServer

NUMBERS = {
    "control_error": {"value": 4.0825, "protocol": "own | control; n = 64", "n": 64, "seconds": 1.5},
    "fvd_random_features": {"value": 0.5, "protocol": "seeded", "n": 8, "seconds": 0.1},
    "broken": {"value": "4"},
}
SAID = ("--license", "apache-2.0", "--data-license", "own videos")


@pytest.fixture(scope="module")
def checkpoint():
    return strangers.sound()


@pytest.fixture
def run(tmp_path, checkpoint):
    """A run's folder: last.ckpt with an average, metrics.json and two steps' samples."""
    folder = tmp_path / "runs" / "mine"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    (folder / "config.yaml").write_text("{}\n")
    (folder / "metrics.json").write_text(json.dumps(NUMBERS))
    for name in ("one", "two"):  # benchmarks that it was measured on
        (folder / "benchmark" / name).mkdir(parents=True)
    for step, light in ((5, 50), (10, 200)):
        samples = folder / "samples" / f"step-{step:06d}"
        samples.mkdir(parents=True)
        write_mp4(samples / "clip-00.mp4", np.full((2, 64, 64, 3), light, np.uint8), 8)
        write_png(samples / "sheet.png", np.full((8, 8, 3), light, np.uint8))
    return folder


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_folder_loads_and_its_card_has_the_runs_numbers(run, tmp_path, checkpoint, capsys):
    out = tmp_path / "card"
    assert main(["card", str(run), "--out", str(out), *SAID]) == 0
    said = capsys.readouterr().out
    assert "step 1, 2 numbers, 1 pictures" in said and "broken: value: expected a finite number" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "model_index.json", "motion_control.json", "motion_control.safetensors", "samples.png",
    ]  # fmt: skip
    text = (out / "README.md").read_text()
    assert metadata(text) == {
        "license": "apache-2.0", "library_name": "remoco", "pipeline_tag": "image-to-video",
        "tags": ["motion-control", "image-to-video", "lora"],
    }  # fmt: skip
    assert "| control_error | 4.0825 | 64 | own \\| control; n = 64 |" in text
    assert "they are not the published metrics" in text
    assert "| the base | none of its own: its weights were drawn at random |" in text
    assert "| the training data | own videos |" in text
    assert (out / "samples.png").read_bytes() == (run / "samples" / "step-000010" / "sheet.png").read_bytes()
    state = load_file(out / "motion_control.safetensors")
    assert state.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in checkpoint["state_dict"].items())
    mask = os.umask(0)
    os.umask(mask)
    assert (out / "motion_control.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (
        MotionControlPipeline.from_pretrained(out).sampling
        == MotionControlPipeline.from_checkpoint(run / "checkpoints" / "last.ckpt").sampling
    )


def test_the_averaged_weights_are_the_ones_that_are_given(run, tmp_path, checkpoint):
    name = next(iter(checkpoint["state_dict"]))
    saved = checkpoint | {"callbacks": {"EMA": {"shadow": {name: checkpoint["state_dict"][name] + 1}}}}
    expected = average_of(saved)
    torch.save(saved, run / "checkpoints" / "best.ckpt")
    assert main(["card", str(run), "--out", str(tmp_path / "card"), "--checkpoint", "best"]) == 0
    state = load_file(tmp_path / "card" / "motion_control.safetensors")
    assert expected.keys() == {name} and torch.equal(state[name], expected[name])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.close()


def clip_of(source, offline=False):
    """In a forked process: a clip's bits, of a controller at a hub id."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = offline
    torch.set_num_threads(1)
    pipe = MotionControlPipeline.from_pretrained(source)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    clip = pipe(image, [[(20, 20), (40, 30)]], num_frames=3, num_inference_steps=1, output_type="pt").frames
    print("found", clip.double().sum().item().hex())


def push_of(source, repo):
    """In a forked process: what `push_to_hub` of a pipeline answers."""
    print("found", MotionControlPipeline.from_pretrained(source).push_to_hub(repo, private=True, commit_message="Mine"))


def test_a_controller_is_pushed_and_read_back_online_and_offline(run, tmp_path, hub):
    out = tmp_path / "card"
    with Forks("tests.commands.test_card") as forks:
        last = lambda: forks.said.strip().splitlines()[-1]  # noqa: E731
        assert forks.run("main", ["card", str(run), "--out", str(out), "--push", "me/mine", *SAID]) == 0, forks.said
        assert last() == f"uploaded {hub.url}/me/mine/commit/89abcdef0123456789abcdef0123456789abcdef"
        assert hub.repos["me/mine"] == {path.name: path.read_bytes() for path in out.iterdir()}
        assert hub.messages == ["mine, step 1"] and not hub.private
        assert 'from_pretrained("me/mine")' in hub.repos["me/mine"]["README.md"].decode()
        assert forks.run("clip_of", str(out)) == 0, forks.said
        own = last()
        assert forks.run("clip_of", "me/mine") == 0, forks.said
        assert last() == own
        hub.repos.clear()
        assert forks.run("clip_of", "me/mine", offline=True) == 0, forks.said
        assert last() == own
        assert forks.run("push_of", str(out), "me/other") == 0, forks.said
        assert hub.private == {"me/other"} and hub.messages[-1] == "Mine"
        assert hub.repos["me/other"].keys() == {"model_index.json", "motion_control.json", "motion_control.safetensors"}
        hub.token = "another"  # noqa: S105
        again = ["card", str(run), "--out", str(tmp_path / "b"), "--push", "me/mine", "--private", *SAID]
        forks.run("main", again)
        errors = [line for line in forks.said.splitlines() if "error" in line]  # beside what it printed
        assert errors == [
            "remoco card: error: me/mine: not uploaded: it needs `hf auth login` with a token that may write there; "
            f"`hf upload me/mine {tmp_path / 'b'} --private` goes on from here"
        ]
        assert (tmp_path / "b" / "README.md").is_file()


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--checkpoint", "best"], "best.ckpt: no such file, expected the folder of a run with that checkpoint"),
        (["--push", "me/mine", "--license", "mit"], "--push me/mine: expected --data-license, which nobody stated"),
        (["--push", "mine"], "--push is 'mine', expected a hub id owner/name"),
        (["--license", "My Own"], "--license is 'My Own', expected an identifier"),
        (["--data-license", "a\nb"], "--data-license: expected one line"),
        (["--out", "."], "--out .: exists already, expected a new folder"),
        (["--private"], "--private: expected --push beside it"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.chdir(tmp_path)
    assert main(["card", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (tmp_path / "mine-card").exists()


@pytest.mark.parametrize(
    "place, value, named",
    [
        ("global_step", "many", "global_step: expected a whole number of steps"),
        ("state_dict", [1], "state_dict"),
        ("remoco.base.init_args", None, "base"),
        ("remoco.base.init_args.path", 5, "base.path: expected a folder or a hub id"),
        ("remoco.sampling.guidance", ["high", 1], "sampling.guidance is"),
    ],
)
def test_a_checkpoint_of_somebody_that_does_not_fit_is_one_line(run, tmp_path, checkpoint, capsys, place, value, named):
    saved = {**checkpoint, "remoco": json.loads(json.dumps(checkpoint["remoco"]))}
    *folders, last = place.split(".")
    part = saved
    for folder in folders:
        part = part[folder]
    part[last] = value
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    assert main(["card", str(run), "--out", str(tmp_path / "card")]) == 2
    error = capsys.readouterr().err
    assert named in error and "last.ckpt" in error and error.count("\n") == 1
    assert not (tmp_path / "card").exists()


def test_a_sheet_that_is_no_picture_of_the_run_is_left_out(run, tmp_path, capsys):
    """A run's folder may come from anybody: a link in it must not publish a file of who makes the card."""
    sheet, private = run / "samples" / "step-000010" / "sheet.png", tmp_path / "private.png"
    private.write_bytes(sheet.read_bytes())
    sheet.unlink()
    sheet.symlink_to(private)
    for number, (content, said) in enumerate([(None, "lies outside of the run"), (b"a key", "sheet.png: ")]):
        if content is not None:
            sheet.unlink()
            sheet.write_bytes(content)
        assert main(["card", str(run), "--out", str(tmp_path / f"card{number}")]) == 0
        out = capsys.readouterr().out
        assert "0 pictures" in out and said in out.splitlines()[1]
        assert not (tmp_path / f"card{number}" / "samples.png").exists()


def test_a_token_is_in_no_error(tmp_path, monkeypatch):
    """Libraries quote the header that they cannot send."""

    class Hub:
        def __init__(self, token):
            self.token = token

        def create_repo(self, *arguments, **options):
            raise RuntimeError(f"Illegal header value b'Bearer {self.token}'")

    monkeypatch.setattr("lightning_modules.hub.HfApi", Hub)
    with pytest.raises(UserError) as caught:
        upload(tmp_path, "me/mine", False, "Mine", token="hf_abc%DEF")  # noqa: S106
    assert str(caught.value) == "me/mine: not uploaded: Illegal header value b'Bearer ...'"
    assert caught.value.__suppress_context__


def test_what_a_base_says_of_its_licence(tmp_path):
    said = lambda path: base_licence({"init_args": {"path": path}})  # noqa: E731
    assert said("owner/name") is None and said(str(tmp_path)) is None
    for head, found in (
        ("license: apache-2.0", "apache-2.0"),
        ("license: other\nlicense_name: community\nlicense_link: LICENSE.md", "other, community, LICENSE.md"),
        ("license: [a]", None), ("- a", None), ("license: !!python/object:os.system x", None), (": :", None),
    ):  # fmt: skip
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# Base\n")
        assert said(str(tmp_path)) == found


def test_the_card_names_a_hub_base_and_no_place_of_a_disk(tmp_path, checkpoint):
    def of(path):
        record = json.loads(json.dumps(checkpoint["remoco"]))
        record["base"] = {"class_path": "lightning_modules.bases.SVD", "init_args": {"path": path}, "hash": "0" * 64}
        told = card("mine", "me/mine", record, 1, 5, {}, {}, Licences("mit", "other", "own"))
        return told, public(record)["base"]["init_args"]["path"]

    text, path = of("stabilityai/stable-video-diffusion-img2vid")
    assert path == "stabilityai/stable-video-diffusion-img2vid" and f'svd="{path}"' in text
    assert metadata(text)["base_model"] == path and metadata(text)["base_model_relation"] == "adapter"
    assert "None were measured." in text
    text, path = of(str(tmp_path / "svd_folder"))
    assert path == "svd_folder" and str(tmp_path) not in text and "base_model" not in metadata(text)
    text, path = of("../svd_folder")  # which is not here
    assert path == "svd_folder" and "base_model" not in metadata(text)
    text, _ = of("a/x` <img src=x> \n```\n# y")
    assert "\n# y" not in text and "x`" not in text


def test_words_from_a_file_are_no_markup(checkpoint):
    bad = {"<img src=x>|a": {"value": 1.0, "protocol": "[x](javascript:y) `b` <script>", "n": 1, "seconds": 1}}
    text = card("a<b>", "me/mine", checkpoint["remoco"], 1, 5, bad, {}, Licences("mit", "other", "own"))
    assert "<img" not in text.replace("\\<", "") and "<script" not in text.replace("\\<", "")
    assert "](" not in text.replace("\\]", "") and "\\|a" in text


def test_licences():
    assert Licences(None, None, "x").missing() == ["--license", "--base-license"]
    with pytest.raises(UserError, match="--base-license: expected one line"):
        Licences("mit", "", None)
