"""Clips made of photographs: held out by name, exact tracks, a function of seed and position."""

from __future__ import annotations

import csv
import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datamodules import PhotosDataModule
from datamodules.scenes import gather
from datamodules.scenes.photos import Photo, held_out, photo_scene, read_photos
from datamodules.scenes.scene import Motion, Scene, render, tracks

NAMES = [f"picture{number}" for number in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Blurred noise as photographs, and two discs with transparent surroundings."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    y, x = np.mgrid[:80, :80]
    for name in NAMES:
        image = cv2.GaussianBlur(rng.integers(0, 256, (120, 160, 3)).astype(np.uint8), (0, 0), 2)
        cv2.imwrite(str(root / f"{name}.png"), image)
    for name in ("thing-a", "thing-b", "thing-c", "thing-d", "thing-e", "thing-f", "thing-g"):
        disc = 255 * (np.hypot(y - 40, x - 40) < 30).astype(np.uint8)
        cv2.imwrite(str(root / f"{name}.png"), np.dstack([np.full((80, 80, 3), 200, np.uint8), disc]))
    (root / "LICENCES.tsv").write_text("")
    return root


def data(folder, **changes):
    made = PhotosDataModule(folder, **{"num_workers": 0, "frames": 4, "height": 64, "width": 64, **changes})
    made.setup()
    return made


def test_pictures_and_cut_outs_are_split_by_name(folder):
    train, held = (read_photos(folder, which) for which in (True, False))
    names = [path.stem for path in folder.glob("*.png")]
    kept = sum(held_out(name + ".jpg") for name in names if name.startswith("picture"))  # whatever the suffix
    assert 0 < len(held.photos) == kept and len(train.photos) == len(NAMES) - kept
    assert len(train.cutouts) + len(held.cutouts) == 7 and train.digest != held.digest
    one = read_photos([folder / f"{name}.png" for name in NAMES[::-1]], True)
    assert len(one.photos) == len(train.photos) and all(
        np.array_equal(a, b) for a, b in zip(one.photos[0], train.photos[0])
    )


def test_a_clip_is_a_function_of_seed_and_position(folder):
    one, again = data(folder), data(folder, batch_size=2)
    first, batch = one.train_set[5], next(iter(again.train_dataloader()))
    assert all(torch.equal(first[k], again.train_set[5][k]) for k in ("video", "flow", "visibility", "first_frame"))
    assert torch.equal(batch["video"][1], one.train_set[1]["video"]) and batch["position"].tolist() == [0, 1]
    assert first["key"] != one.train_set[6]["key"]
    assert not torch.equal(first["video"], data(folder, data_seed=1).train_set[5]["video"])
    keys = {data(folder, clips=2500).train_set[position]["key"] for position in range(3)}
    assert len(keys) == 3
    assert len(one.val_set) == 48 and one.val_set[0]["key"] == "photo-00000000"


def test_tracks_lead_to_the_same_colour(folder):
    photos = read_photos(folder, True)
    off, seen = [], 0
    for seed in range(6):
        scene = photo_scene(photos, [seed], 4, 64, 64)
        video, (flow, visibility) = render(scene), tracks(scene)
        y, x = np.mgrid[:64, :64]
        inner = cv2.erode((np.abs(np.gradient(flow[-1, 0])).max(0) < 0.2).astype(np.uint8), np.ones((7, 7))) > 0
        good = visibility.all(0) & inner
        good &= cv2.erode(visibility[-1].astype(np.uint8), np.ones((5, 5))) > 0
        to_x, to_y = ((at + way).astype(np.float32) for at, way in zip((x, y), flow[-1]))
        there = cv2.remap(video[-1].transpose(1, 2, 0), to_x, to_y, cv2.INTER_CUBIC)
        off.append(np.abs(there.astype(int) - video[0].transpose(1, 2, 0))[good].mean())
        seen += (np.abs(flow[-1]).max(0) > 5).sum()
    assert np.mean(off) < 4 and seen > 500  # of 255; standing still it is some 20


def test_what_cannot_be_read_is_one_line(tmp_path, folder):
    for photos, line in ((tmp_path / "none", "no folder"), (tmp_path, "no picture"), ([], "no picture")):
        with pytest.raises(ValueError, match=rf"^data\.photos: {line}"):
            read_photos(photos, True)
    alone = next(path for path in folder.glob("picture*") if not held_out(path.name))
    with pytest.raises(ValueError, match="validation set, which has one of 5 by name"):
        read_photos([alone], False)


def test_the_list_has_free_licences_and_its_pictures_are_read_from_resources(tmp_path, monkeypatch):
    rows = gather.listed()
    assert {row["licence"].split("-")[0] for row in rows} <= {"CC0", "public", "CC"}
    assert not any("SA" in row["licence"] or "NC" in row["licence"] for row in rows)
    assert len({row["name"] for row in rows}) == len(rows) > 50 and all(row["author"] for row in rows)
    picture = cv2.imencode(".png", np.full((40, 60, 3), 90, np.uint8))[1].tobytes()
    fields = ["name", "kind", "source", "package", "path", "licence", "author"]
    with (tmp_path / "list.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, delimiter="\t")
        writer.writeheader()
        writer.writerow(dict(zip(fields, ["a.jpg", "photo", "apt", "some-data", "b/c.png", "CC0-1.0", "me"])))
    monkeypatch.setattr(gather, "LIST", tmp_path / "list.tsv")
    resource = _resource("b", "c.png", picture)
    monkeypatch.setattr(gather, "_of_debian", lambda package, scratch: gather._of_resources(resource))
    gather.gather(tmp_path / "out")
    assert cv2.imread(str(tmp_path / "out" / "a.jpg")).shape == (40, 60, 3)
    assert (tmp_path / "out" / "LICENCES.tsv").read_bytes() == (tmp_path / "list.tsv").read_bytes()


def _resource(folder: str, name: str, data: bytes) -> bytes:
    """A compiled Qt resource of version 2 with one file in one folder."""
    names, at = b"", []
    for text in (folder, name):
        at.append(len(names))
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", at[0], 2, 1, 2, 0)
    tree += struct.pack(">IHHHIQ", at[1], 0, 0, 0, 0, 0)
    body = struct.pack(">I", len(data)) + data
    head = 20
    return (
        struct.pack(">4sIIII", b"qres", 2, head, head + len(tree), head + len(tree) + len(body)) + tree + body + names
    )


def test_a_thing_that_starts_behind_another_has_no_tracks_and_is_no_error(folder):
    photos = read_photos(folder, True)
    scenes = (photo_scene(photos, [0, number], 4, 64, 64) for number in range(400))
    ground, front = next(scene.layers for scene in scenes if len(scene.layers) == 2)
    cut = next(
        scene.layers[1] for scene in (photo_scene(photos, [1, number], 4, 64, 64) for number in range(400))
        if len(scene.layers) == 2 and isinstance(scene.layers[1].texture, Photo) and scene.layers[1].texture.scale > 1
    )  # fmt: skip
    centre, still = np.full((4, 2), 32.0), np.zeros(4)
    hidden = replace(cut, motion=Motion(centre, still, np.full(4, 0.2)))
    cover = replace(front, motion=Motion(centre, still, np.full(4, 2.0)))
    flow, visibility = tracks(Scene((ground, hidden, cover), 4, 64, 64))
    assert np.isfinite(flow).all() and visibility[0].all()
