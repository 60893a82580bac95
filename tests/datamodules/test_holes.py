"""Holes filled beforehand: written once, gone on with, read as functions of seed and position; and trained on."""

from __future__ import annotations

import json
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from conditions import RegionWise
from datamodules import HolesDataModule, PhotosDataModule
from datamodules.holes import changed, file_of
from datamodules.scenes.photos import photo_scene, read_photos
from datamodules.scenes.scene import render
from lightning_modules import MotionControlModule
from lightning_modules.bases import Photos
from lightning_modules.config import Control, Noise
from remoco import holes
from remoco.common.errors import UserError
from tests.support.modules import trainer
from tests.support.same import same

SIDE, EACH = 64, 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(16):
        image = cv2.GaussianBlur(rng.integers(0, 256, (200, 240, 3)).astype(np.uint8), (0, 0), 4)
        cv2.imwrite(str(root / f"picture{number}.png"), cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX))
    return root


@pytest.fixture(scope="module")
def write(photos):
    """`write_holes` with files of 4 clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holes, "EACH", EACH)
        yield partial(holes.write_holes, str(photos), clips=12, val_clips=4, side=SIDE)


@pytest.fixture(scope="module")
def folder(write, tmp_path_factory):
    root = tmp_path_factory.mktemp("holes")
    write(root, seed=0)
    return root


def data(folder, **changes):
    made = HolesDataModule(str(folder), **{"height": SIDE, "width": SIDE, "batch_size": 2, **changes})
    made.setup()
    return made


def test_a_hole_is_a_true_picture_whose_rest_is_as_the_first_frame_shows_it(photos, folder):
    scene = photo_scene(read_photos(photos, True), [0, 0, 0], 2, SIDE, SIDE)
    plate, true, hole = np.split(np.load(file_of(folder, True, 0))[0].astype(int), [3, 6])
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    covered = np.any([layer.covers(0, x, y) for layer in scene.layers[1:]], 0)
    assert set(np.unique(hole)) == {0, 255} and 60 < (hole > 0).sum() < SIDE * SIDE / 2
    assert np.array_equal(plate[:, hole[0] == 0], render(scene)[0][:, hole[0] == 0])
    apart = cv2.dilate(covered.astype(np.uint8), np.ones((5, 5))) == 0
    assert np.abs(true - render(scene)[0])[:, apart].max() <= 1 and (hole[0] > 0)[covered].mean() > 0.9
    assert np.abs(plate - true)[:, covered].mean() > 1  # a guess


def test_a_set_that_was_stopped_is_gone_on_with_and_grows(write, folder, tmp_path):
    write(tmp_path, seed=0)
    gone, kept = file_of(tmp_path, True, 1), file_of(tmp_path, True, 0)
    before = kept.stat().st_mtime_ns
    gone.unlink()
    (tmp_path / f".{gone.name}.1.tmp").write_bytes(b"half of it")
    write(tmp_path, seed=0)
    assert gone.read_bytes() == file_of(folder, True, 1).read_bytes() and kept.stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".*.tmp"))
    write(tmp_path, seed=0, clips=16)
    assert json.loads((tmp_path / "holes.json").read_text())["train"] == 4
    assert len(data(tmp_path).train_set) > len(data(folder).train_set)
    write(tmp_path, seed=0, clips=4)  # fewer take none away
    assert json.loads((tmp_path / "holes.json").read_text())["train"] == 4
    with pytest.raises(UserError, match="its seed is another set's"):
        write(tmp_path, seed=1)


def test_a_row_is_a_function_of_seed_and_position(folder):
    one, again, other = data(folder), data(folder, batch_size=3), data(folder, seed=1)
    rows = [made.train_set[7] for made in (one, again, other)]
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in ("video", "plate", "hole"))
    assert not torch.equal(rows[0]["plate"], rows[2]["plate"])
    batch = next(iter(again.train_dataloader()))
    assert torch.equal(batch["plate"][2], one.train_set[2]["plate"]) and batch["position"].tolist() == [0, 1, 2]
    held = one.val_set[0]
    stored = torch.from_numpy(np.load(file_of(folder, False, 0))[0])
    assert torch.equal(held["plate"], stored[:3]) and torch.equal(held["video"][1], stored[3:6])
    assert torch.equal(held["hole"], stored[6] > 0)


def test_what_is_turned_and_recoloured_stays_one_picture():
    rng = np.random.default_rng(0)
    picture = rng.integers(90, 166, (7, 6, 6)).astype(np.uint8)
    picture[3:6], picture[6] = picture[:3], 255 * (rng.random((6, 6)) < 0.5)
    marked = picture.copy()
    marked[:3, picture[6] > 0] += 30
    looks = set()
    for seed in range(200):
        made = changed(marked, np.random.default_rng(seed)).astype(int)
        differs = np.abs(made[:3] - made[3:6]).min(0)
        assert np.array_equal(differs > 15, made[6] > 0) and differs.max() < 35  # colours change by 0.7 to 1.1 times
        looks.add((made[6] > 0).tobytes())
    assert len(looks) == 8  # turns and mirror images of a square
    wide = changed(picture[:, :4], np.random.default_rng(0))
    assert wide.shape == (7, 4, 6)


@pytest.mark.parametrize(
    "spoil, line",
    [
        (lambda root: file_of(root, True, 1).write_bytes(b"x"), "does not read"),
        (lambda root: np.save(file_of(root, True, 1), np.zeros((2, 7, 8, 8), np.uint8)), "expected uint8 of N x 7"),
        (lambda root: file_of(root, True, 1).unlink(), "does not read"),
        (lambda root: (root / "holes.json").write_text('{"train": "many"}'), "train is 'many'"),
        (lambda root: (root / "holes.json").write_text('{"train": 0}'), "no hole in"),
        (lambda root: (root / "holes.json").unlink(), "holes.json"),
    ],
)
def test_a_set_that_does_not_read_is_one_line(folder, tmp_path, spoil, line):
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spoil(tmp_path)
    with pytest.raises(UserError, match=line) as error:
        data(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [HolesDataModule, PhotosDataModule])
def test_a_batch_of_nothing_is_one_line(kind):
    with pytest.raises(UserError, match="val_batch_size=0: expected 1 to"):
        kind(val_batch_size=0)


def network():
    base = Photos(trained=True)
    return MotionControlModule(base, RegionWise(min_mask_ratio=0.0), Control(["warp"], None), Noise(dropout=0.0))


def test_a_training_on_them_resumes_to_the_bit(folder, tmp_path):
    losses = []
    for name, cuts in (("whole", [3]), ("parts", [1, 3])):
        (tmp_path / name).mkdir()
        for steps in cuts:
            path = tmp_path / name / "last.ckpt"
            again = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
            fitting = trainer(tmp_path / name, steps, limit_val_batches=1)
            fitting.fit(network(), data(folder), **again)
            losses.append(fitting.callback_metrics["train/loss"].item())
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert losses[1] == 1 and losses[0] == losses[2] != 1
    assert one["state_dict"]["injections.0.unknown.weight"].any()
