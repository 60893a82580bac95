"""Embeddings that are made once: the text encoder is not read again for them, and never on another device."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading

import pytest
import torch

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import CogVideoX, Wan, empty_prompt, text_reader, text_store
from lightning_modules.config import Control, Sampling
from remoco.common.errors import UserError
from tests.support import cogvideox, wan


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {Wan: wan.write(root / "wan"), CogVideoX: cogvideox.write(root / "cogvideox")}


@pytest.fixture
def readings(monkeypatch, tmp_path):
    """A list with the default device of each reading of a text encoder."""
    monkeypatch.setenv(text_store.VARIABLE, str(tmp_path / "store"))
    read, devices = empty_prompt.read_whole, []

    def counted(base, name, *args):
        if name == "text_encoder":
            devices.append(torch.get_default_device().type)
        return read(base, name, *args)

    monkeypatch.setattr(empty_prompt, "read_whole", counted)
    return devices


@pytest.mark.parametrize("kind", [Wan, CogVideoX])
def test_the_encoder_is_read_once_for_each_text_with_the_same_bits(folders, readings, tmp_path, kind, monkeypatch):
    first = kind(folders[kind]).build(torch.bfloat16)
    made = first.embed_text(["red dog", "dog"])
    assert len(readings) == 2  # for the empty text, and for both prompts
    again = kind(folders[kind]).build(torch.bfloat16)
    assert torch.equal(again.empty, first.empty) and again.identity["hash"] == first.identity["hash"]
    assert all(map(torch.equal, again.embed_text(["red dog", "dog", ""]), [*made, first.empty]))
    assert len(readings) == 2
    monkeypatch.setenv(text_store.VARIABLE, "")
    plain = kind(folders[kind]).build(torch.bfloat16)
    assert torch.equal(plain.empty, first.empty) and plain.identity["hash"] == first.identity["hash"]
    assert all(map(torch.equal, plain.embed_text(["red dog", "dog"]), made)) and len(readings) == 4


def test_other_files_other_dtypes_and_damaged_embeddings_are_made_anew(folders, readings, tmp_path):
    first = Wan(folders[Wan]).build()
    assert Wan(folders[Wan]).build(torch.bfloat16).empty.dtype == torch.bfloat16 and len(readings) == 2
    copy = tmp_path / "copy"
    shutil.copytree(folders[Wan], copy)
    wan.text_encoder(seed=9).save_pretrained(copy / "text_encoder")
    other = Wan(copy).build()
    assert len(readings) == 3 and other.hashes["text_encoder"] != first.hashes["text_encoder"]
    for file in (tmp_path / "store" / "text").glob("*.safetensors"):
        file.write_bytes(b"x")
    assert torch.equal(Wan(folders[Wan]).build().empty, first.empty) and len(readings) == 4


def test_the_encoders_files_are_hashed_once_while_they_stay_as_they_are(folders, readings, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(folders[Wan], copy)
    digest, hashed = hashlib.file_digest, []
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    base = Wan(copy).build()
    for text in ("dog", "red dog"):
        base.embed_text([text])
    files = {str(copy / "text_encoder" / name) for name in ("config.json", "model.safetensors")}
    assert set(hashed) >= files and len(hashed) == len(set(hashed))
    wan.text_encoder(seed=9).save_pretrained(copy / "text_encoder")
    with pytest.raises(UserError, match="is not the text encoder that this base was made with"):
        base.embed_text(["red"])


def test_a_trainers_device_is_not_the_encoders(folders, readings):
    """A trainer builds networks on its own device by default: `meta` stands for a GPU here."""
    base = Wan(folders[Wan]).build()
    base.embed_text(["dog"])
    with torch.device("meta"):
        empty, _ = empty_prompt.empty_prompt(folders[Wan], torch.float32, "it", base.text_kind().encoder)
    assert empty.device.type == "cpu" and torch.equal(empty, base.empty) and set(readings) == {"cpu"}


def test_the_longest_unused_go_and_a_folder_that_takes_nothing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv(text_store.VARIABLE, str(tmp_path / "store"))
    monkeypatch.setattr(text_store, "MOST_FILES", 2)
    places = [text_store.key("encoder", torch.float32, 1, "tokenizer", text) for text in "abc"]
    assert len(set(places)) == 3
    for number, place in enumerate(places[:2]):
        text_store.write(place, torch.full((1, 2), float(number)), "hash")
        os.utime(place, (number, number))
    assert text_store.read(places[0])[0].tolist() == [[0, 0]]  # which makes it the last used
    text_store.write(places[2], torch.ones(1, 2), "hash")
    assert [place.exists() for place in places] == [True, False, True]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(text_store.VARIABLE, str(tmp_path / "file"))
    place = text_store.key("encoder", torch.float32, 1)
    with text_store.alone(place):
        text_store.write(place, torch.ones(1, 2), "hash")
    assert text_store.read(place) is None
    monkeypatch.setenv(text_store.VARIABLE, "")
    assert text_store.key("encoder", torch.float32, 1) is None


def test_of_several_processes_at_once_one_reads_the_encoder_for_a_prompt(folders, readings, monkeypatch):
    """The ranks of a machine: another one asks while the first reads."""
    first, other = (Wan(folders[Wan]).build() for _ in range(2))
    made = []
    rank = threading.Thread(target=lambda: made.extend(other.embed_text(["dog"])))
    read = text_reader.read_encoder

    def slow(*args):
        if rank.ident is None:
            rank.start()
            rank.join(0.5)  # it waits for this one; else it is through by then
        return read(*args)

    monkeypatch.setattr(text_reader, "read_encoder", slow)
    mine = first.embed_text(["dog"])
    rank.join()
    assert torch.equal(mine[0], made[0]) and len(readings) == 2  # for the empty text, and for the prompt


def test_a_runs_own_prompts_lead_its_samples_where_clips_bring_no_texts(folders, readings):
    made = {}
    for name, inputs in {"none": {}, "away": {"negative_prompt": "dog"}}.items():
        net = MotionControlModule(
            Wan(folders[Wan]), RegionWise(min_mask_ratio=0.5), control=Control([], None),
            sampling=Sampling(1, guidance=(3.0, 3.0), inputs=inputs),
        )  # fmt: skip
        net.configure_model()
        batch = {
            "flow": torch.zeros(1, 5, 2, 32, 48), "visibility": torch.ones(1, 5, 32, 48, dtype=torch.bool),
            "first_frame": torch.zeros(1, 3, 32, 48), "fps": torch.ones(1), "position": torch.tensor([0]),
        }  # fmt: skip
        made[name] = net.sample(batch, None)
    away = net.base.embed_text(["dog"])[0][None]
    given = net.sample({**batch, "text": net.base.empty[None], "negative_text": away}, None)
    assert torch.equal(made["away"], given) and not torch.equal(made["none"], given)
    assert len(readings) == 2  # for the empty text, and for the negative prompt
