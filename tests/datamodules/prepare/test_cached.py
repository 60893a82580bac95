"""Tracks that come with their clips, in the released layout: kept to 1/16 px, and what is wrong with one in a line."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from datamodules import WebVidDataModule
from datamodules.prepare.settings import CACHED as CACHED_NAME
from datamodules.prepare.settings import Settings
from datamodules.prepare.sources import videos_in
from datamodules.prepare.video import encode_clip
from datamodules.shards import Shards, samples
from datamodules.shards.flow_codec import to_pixels
from remoco.common.errors import BadClip, UserError
from tests.support.commands import prepare as run
from tests.support.places import REPO
from tests.support.prepared import metas, report
from tests.support.released_data import FRAMES, HEIGHT, WIDTH, clip, jpg, npy, tracks, write_folder, write_tar
from tests.support.videos import write_video

CACHED = ["--tracker", "cached", "--frames", FRAMES, "--height", HEIGHT, "--width", WIDTH, "--workers", 1]


def decoded(members, shape):
    """A clip's members as what training sees, flow in pixels, with its caption and its JSON."""
    sample = samples.decode(members, shape)
    sample["flow"] = to_pixels(sample["flow"], float(sample["flow_step"]))
    return sample | {"caption": members["txt"].decode(), "meta": json.loads(members["json"])}


def clips_of(out):
    """Source name -> decoded clip of a set of shards."""
    shards = Shards(str(out))
    kinds = ["mp4", "flow.z", "masks.tif", "txt", "json"]
    places = [(shard, number) for shard, count in enumerate(shards.counts) for number in range(count)]
    made = [decoded(shards.read(*place, kinds), shards.shape) for place in places]
    return {clip["meta"]["source"]["name"]: clip for clip in made}


def made(source, frames=FRAMES, **options):
    """Source name -> decoded clip, or the reason why there is none, by the worker's function in this process."""
    settings, found = Settings(CACHED_NAME, frames=frames, height=HEIGHT, width=WIDTH, **options), {}
    for video in videos_in(str(source), None, settings):
        try:
            found[video.name] = decoded(encode_clip(video, 0.0, settings), settings.shape)
        except BadClip as error:
            found[video.name] = str(error)
    return found


def members_of(tmp_path, seed, caption="a dog runs"):
    """The four members of a clip, by suffix, and flow and visibility."""
    path, video = clip(tmp_path / f"source{seed}", seed)
    flow, seen = tracks(seed)
    members = {"mp4": path.read_bytes(), "npy": npy(flow), "jpg": jpg(seen), "txt": caption.encode()}
    return members, flow, seen, video


def assert_kept(sample, flow, seen):
    assert np.abs(sample["flow"][1:] - flow.transpose(0, 3, 1, 2)).max() <= 1 / 16 + 1e-6  # hidden pixels too
    assert not sample["flow"][0].any() and sample["visibility"][0].all()
    assert (sample["visibility"][1:] == seen).all()


def test_tars_keep_flow_masks_and_captions(tmp_path):
    a, flow_a, seen_a, video = members_of(tmp_path, 1)
    b, flow_b, seen_b, _ = members_of(tmp_path, 2, "ein Hünd")
    named = {f"{key}.{kind}": data for key, each in (("000001", a), ("000002", b)) for kind, data in each.items()}
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", named)
    assert run(tmp_path / "tars", tmp_path / "out", *CACHED) == 0
    assert run("verify", tmp_path / "out") == 0
    kept = clips_of(tmp_path / "out")
    assert_kept(kept["0.tar/000001"], flow_a, seen_a)
    assert_kept(kept["0.tar/000002"], flow_b, seen_b)
    assert [kept[f"0.tar/00000{n}"]["caption"] for n in (1, 2)] == ["a dog runs", "ein Hünd"]
    error = np.abs(kept["0.tar/000001"]["video"].astype(int) - video)
    assert error.mean() < 6  # encoded twice
    meta = metas(tmp_path / "out")[0]
    assert meta["tracker"] == {"name": "cached", "version": "1"} and meta["flow"]["fill"] == "none"


def test_a_system_that_reads_a_part_at_a_time(tmp_path, monkeypatch):
    """As Linux does above 2 GB."""
    members, flow, seen, _ = members_of(tmp_path, 1)
    write_tar(tmp_path / "a.tar", {f"k.{kind}": data for kind, data in members.items()})
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: pread(file, min(size, 5000), place))
    assert_kept(made(tmp_path / "a.tar")["a.tar/k"], flow, seen)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64])
def test_flow_of_any_float_and_order(tmp_path, dtype):
    members, flow, seen, _ = members_of(tmp_path, 1)
    flow = flow.astype(dtype)
    members["npy"] = npy(np.asfortranarray(flow))
    write_tar(tmp_path / "a.tar", {f"k.{kind}": data for kind, data in members.items()})
    assert_kept(made(tmp_path / "a.tar")["a.tar/k"], flow.astype(np.float32), seen)


def test_a_folder_for_each_clip(tmp_path):
    source = tmp_path / "webvid"
    flow, seen = write_folder(source / "1066674877", 3)
    write_folder(source / "1066675123", 4)
    (source / "1066674877" / "video.txt").write_text("a cat")
    (source / "1066675123" / "prompt.txt").write_text("the only text of its folder")
    kept = made(source)
    assert_kept(kept["1066674877/video.mp4"], flow, seen)
    assert kept["1066674877/video.mp4"]["caption"] == "a cat"
    assert kept["1066675123/video.mp4"]["caption"] == "the only text of its folder"


def test_a_tar_that_was_unpacked(tmp_path):
    members, flow, seen, _ = members_of(tmp_path, 5)
    (tmp_path / "loose").mkdir()
    for kind, data in members.items():
        (tmp_path / "loose" / f"000005.{kind}").write_bytes(data)
    kept = made(tmp_path / "loose")["000005.mp4"]
    assert_kept(kept, flow, seen)
    assert kept["caption"] == "a dog runs"


def test_numbers_are_numbers_not_text(tmp_path):
    """flow_2 comes before flow_10, which a sort by name, as the released loader's, has the other way round."""
    source, frames = tmp_path / "clips" / "a", 12
    clip(source, 6, frames=frames)
    flow, seen = tracks(6, frames=frames)
    for number, (each, mask) in enumerate(zip(flow, seen), start=1):
        (source / f"flow_{number}.npy").write_bytes(npy(each))
        (source / f"visible_mask_{number}.jpg").write_bytes(jpg(mask))
    assert_kept(made(source.parent, frames)["a/video.mp4"], flow, seen)


def test_pictures_are_taken_one_by_one(tmp_path):
    """The tracks belong to the video's pictures, whatever its rate: none is left out or repeated."""
    source = tmp_path / "clips" / "a"
    write_folder(source, 7, fps=25)
    kept = made(source.parent)["a/video.mp4"]
    assert kept["meta"]["source"]["notes"] == ["25 pictures a second taken as 8"]
    _, video = clip(tmp_path / "again", 7)
    assert np.abs(kept["video"].astype(int) - video).mean() < 6


def test_fill_may_be_asked_for(tmp_path):
    write_folder(tmp_path / "clips" / "a", 7)
    assert made(tmp_path / "clips", fill="smooth")["a/video.mp4"]["meta"]["flow"]["fill"] == "smooth"
    assert Settings().filling == "smooth" and Settings(tracker="dis").filling == "smooth"


def test_options_that_cut_videos_are_refused():
    for options in ({"every": 1.0}, {"shots": True}):
        with pytest.raises(UserError, match=r"^--(every|shots): not with --tracker cached"):
            Settings(tracker="cached", **options)


def test_the_documents_command(tmp_path, monkeypatch):
    """The line of docs/data.md, at a small size; training then reads the set at its shape."""
    line = next(line for line in (REPO / "docs/data.md").read_text("utf-8").splitlines() if "--tracker cached" in line)
    words = line.split("#")[0].split()
    assert words[:2] == ["remoco", "prepare"] and words[2:4] == ["RELEASED", "SHARDS"]
    write_folder(tmp_path / "RELEASED" / "1066674877", 1)
    monkeypatch.chdir(tmp_path)
    assert run(*words[2:], *CACHED[2:]) == 0
    module = WebVidDataModule("SHARDS", batch_size=1, frames=FRAMES, height=HEIGHT, width=WIDTH, num_workers=0)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["visibility"].shape == (1, FRAMES, HEIGHT, WIDTH) and batch["flow"].shape == (
        1,
        FRAMES,
        2,
        HEIGHT,
        WIDTH,
    )


def test_bad_clips_are_left_out_and_changed_tracks_are_another_source(tmp_path, capsys):
    source = tmp_path / "clips" / "a"
    write_folder(source, 8)
    write_folder(tmp_path / "clips" / "b", 8)
    (tmp_path / "clips" / "b" / "flow_01.npy").unlink()
    assert run(tmp_path / "clips", tmp_path / "out", *CACHED) == 0
    line = report(tmp_path / "out")["b/video.mp4"]
    assert line["bad"] == [{"start": 0.0, "reason": "flow: there are 2 files, expected 3 for --frames 4"}]
    assert "b/video.mp4: flow: there are 2 files" in capsys.readouterr().out
    (source / "flow_02.npy").write_bytes(npy(np.zeros((HEIGHT, WIDTH, 2), np.float64)))
    assert run(tmp_path / "clips", tmp_path / "out", *CACHED) == 2
    assert "files have changed" in capsys.readouterr().err


def bomb():
    """A header that promises 16 TB, in an honest file of 200 bytes."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (FRAMES - 1, HEIGHT, WIDTH, 2)}
    )
    return head.getvalue() + b"\0" * 200


def pickled():
    return npy(np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", b"\0" * (1 << 22))
    return file.getvalue()


def not_finite(value):
    flow = tracks(1)[0].copy()
    flow[1, 5, 5, 0] = value
    return npy(flow)


FLOW, SEEN = tracks(1)
BAD = {
    "nan": ("npy", lambda: not_finite(np.nan), "flow is not finite in 1 of"),
    "inf": ("npy", lambda: not_finite(-np.inf), "flow is not finite in 1 of"),
    "beyond float32": ("npy", lambda: npy(np.full(FLOW.shape, 1e300)), "flow is not finite"),
    "out of reach": ("npy", lambda: npy(FLOW * 5000), "px exceeds"),
    "a frame too many": ("npy", lambda: npy(np.concatenate([FLOW, FLOW[:1]])), ".npy: the flow is 4 x 64 x 96 x 2"),
    "another size": ("npy", lambda: npy(FLOW[:, :32]), ".npy: the flow is 3 x 32 x 96 x 2, expected 3 x 64 x 96 x 2"),
    "channels first": ("npy", lambda: npy(FLOW.transpose(0, 3, 1, 2)), ".npy: the flow is 3 x 2 x 64 x 96"),
    "whole numbers": ("npy", lambda: npy(FLOW.astype(np.int16)), ".npy: holds no floats"),
    "complex": ("npy", lambda: npy(FLOW.astype(np.complex64)), ".npy: holds no floats"),
    "a pickle": ("npy", pickled, ".npy: holds no floats"),
    "a bomb": ("npy", bomb, ".npy: has 200 bytes of flow, expected 147456"),
    "cut short": ("npy", lambda: npy(FLOW)[:-9], ".npy: has 147447 bytes of flow"),
    "too long": ("npy", lambda: npy(FLOW) + b"more", ".npy: has 147460 bytes"),
    "an npz": ("npy", zipped, ".npy: is no .npy file"),
    "empty": ("npy", lambda: b"", ".npy: is no .npy file"),
    "noise": ("npy", lambda: bytes(range(256)) * 9, ".npy: is no .npy file"),
    "a long header": ("npy", lambda: b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f" + b"(" * 999, ".npy: is no .npy file"),
    "a mask too few": ("jpg", lambda: jpg(SEEN[:2]), ".jpg: is 64 x 192, expected 64 x 288 (3 masks of 64 x 96 side"),
    "a stack of masks": ("jpg", lambda: jpg(SEEN.reshape(-1, WIDTH)), ".jpg: is 192 x 96, expected 64 x 288"),
    "a broken mask": ("jpg", lambda: jpg(SEEN)[:400], ".jpg: does not decode as a JPEG"),
    "no JPEG": ("jpg", lambda: b"GIF89a" + b"\0" * 99, ".jpg: does not decode as a JPEG"),
    "a large mask": ("jpg", lambda: jpg(SEEN) + b"\0" * (1 << 20), ".jpg: has 10"),
    "no flow": ("npy", None, "has no .npy, the flow,"),
    "no masks": ("jpg", None, "has no .jpg, the visibility masks,"),
    "a broken video": ("mp4", lambda: bytes(range(1, 256)) * 20, "video: does not decode"),
}  # fmt: skip


def test_what_is_wrong_with_a_clip_is_one_line_and_costs_that_clip(tmp_path):
    good = members_of(tmp_path, 1)[0]
    named = {f"good.{kind}": data for kind, data in good.items()}
    for name, (kind, make, _) in BAD.items():
        clip_members = good | {kind: make() if make else None}
        named |= {f"{name.replace(' ', '_')}.{k}": data for k, data in clip_members.items() if data is not None}
    write_tar(tmp_path / "a.tar", named)
    found = made(tmp_path / "a.tar")
    assert found["a.tar/good"]["caption"] == "a dog runs"
    for name, (_, _, expected) in BAD.items():
        reason = found[f"a.tar/{name.replace(' ', '_')}"]
        assert expected in reason and "\n" not in reason, (name, reason)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "flow_02.npy").unlink(), "flow: number 02 is missing, there are 2 from 01 on"),
        (lambda folder: (folder / "visible_mask_03.jpg").unlink(), "visible_mask: there are 2 files, expected 3 for"),
        (lambda folder: (folder / "flow_3.npy").write_bytes(b""), "flow_3.npy: has the number of flow_03.npy"),
        (lambda folder: [p.unlink() for p in folder.glob("flow_*")], "has no tracks: neither video.npy nor flow_01"),
        (lambda folder: (folder / "b.mp4").write_bytes(b"x" * 999), "its folder has 2 videos and one set of tracks"),
        (lambda folder: (folder / "flow_02.npy").write_bytes(npy(FLOW)), "flow_02.npy: the flow is 3 x 64 x 96 x 2"),
        (lambda folder: write_video(folder / "video.mp4", 5, 8, HEIGHT, WIDTH), "video: has more than 4 pictures"),
        (lambda folder: write_video(folder / "video.mp4", 3, 8, HEIGHT, WIDTH), "video: has 3 pictures, expected 4"),
        (lambda folder: write_video(folder / "video.mp4", 4, 8, 80, WIDTH), "video: is 80 x 96, expected 64 x 96"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_folder(tmp_path, change, expected):
    write_folder(tmp_path / "clips" / "a", 9)
    write_folder(tmp_path / "clips" / "z", 9)
    change(tmp_path / "clips" / "a")
    found = made(tmp_path / "clips")
    assert expected in found["a/video.mp4"] and found["z/video.mp4"]["visibility"].any()


def test_other_trackers_still_track_such_clips(tmp_path):
    write_folder(tmp_path / "clips" / "a", 9)
    settings = Settings("dis", frames=FRAMES, height=HEIGHT, width=WIDTH)
    (video,) = videos_in(str(tmp_path / "clips"), None, settings)
    assert decoded(encode_clip(video, 0.0, settings), settings.shape)["meta"]["tracker"]["name"] == "dis"
