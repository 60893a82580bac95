"""Anybody's videos: the pictures that are nearest, as they are watched, of the stream that is shown, none damaged."""

import math
import resource
import socket
import struct
import tarfile
import threading
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from datamodules.prepare import clips
from datamodules.prepare.sources import videos_in
from datamodules.scenes.scene import random_scene, render
from remoco.common.errors import BadClip
from remoco.common.videos import decode
from remoco.common.videos.files import read_frames, read_video
from tests.support.commands import prepare as run
from tests.support.prepared import metas, report
from tests.support.videos import FIELDS, number_of, numbered, set_display_matrix, woven, write_pictures

NTSC = {name: Fraction(top, 1001) for name, top in (("23.976", 24000), ("29.97", 30000), ("59.94", 60000))}


def numbers(path, start, frames, fps):
    return [number_of(frame.transpose(1, 2, 0)) for frame in clips.read_clip(path, start, frames, fps, 48, 80).frames]


def nearest(times, start, frames, fps):
    """In whole numbers: the picture whose time is nearest to each instant, of two as near the earlier."""
    instants = [Fraction(start) + Fraction(k, fps) for k in range(frames)]
    return [min(range(len(times)), key=lambda n: (abs(times[n] - instant), n)) for instant in instants]


# Times


@pytest.mark.parametrize("rate", list(NTSC))
def test_the_nearest_pictures_of_ntsc_rates(tmp_path, rate):
    times = [n / NTSC[rate] for n in range(180)]
    for name in ("v.mp4", "v.mkv", "v.ts"):
        write_pictures(tmp_path / name, [numbered(n) for n in range(180)], NTSC[rate])
        for start in (0, 1, Fraction(5, 4)):
            assert numbers(tmp_path / name, float(start), 8, 8) == nearest(times, start, 8, 8)


def test_24000_1001_at_8_is_every_third_picture(tmp_path):
    write_pictures(tmp_path / "v.mp4", [numbered(n) for n in range(60)], NTSC["23.976"])
    assert numbers(tmp_path / "v.mp4", 0, 16, 8) == list(range(0, 48, 3))


@pytest.mark.parametrize(
    "rate, fps, name", [(NTSC["23.976"], 24, "v.mp4"), (NTSC["29.97"], 30, "v.mkv"), (24, 24, "v.mkv")]
)
def test_no_picture_comes_twice_where_there_are_enough(tmp_path, rate, fps, name):
    write_pictures(tmp_path / name, [numbered(n) for n in range(900)], rate, g="48")
    # half a picture, where two are as near; 500 pictures, after which 24 are wanted where 23.976 are
    for start in (0, 0.5 / float(rate), 1.5 / float(rate), 500 / float(rate), 490.5 / float(rate)):
        found = numbers(tmp_path / name, start, 24, fps)
        assert found == list(range(found[0], found[0] + 24)), start
        assert abs(found[0] - start * rate) <= 0.5 + 1e-3


def test_a_slower_video_repeats_the_pictures_that_are_nearest(tmp_path):
    write_pictures(tmp_path / "v.mp4", [numbered(n) for n in range(100)], 25)
    assert numbers(tmp_path / "v.mp4", 1.0, 24, 30) == nearest([Fraction(n, 25) for n in range(100)], 1, 24, 30)
    with pytest.raises(BadClip, match="different pictures where a clip of 16 frames at 50 fps was asked"):
        clips.read_clip(tmp_path / "v.mp4", 0, 16, 50, 48, 80)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_the_nearest_pictures_of_a_variable_rate(tmp_path, name):
    gaps = np.random.default_rng(7).integers(10, 120, 100)
    times = [0, *np.cumsum(gaps).tolist()]
    write_pictures(tmp_path / name, [numbered(n) for n in range(101)], 1000, times=times)
    for fps in (4, 7, 8):
        for start in (0, Fraction(1, 2), Fraction(1717, 1000)):
            true = nearest([Fraction(time, 1000) for time in times], start, 12, fps)
            assert numbers(tmp_path / name, float(start), 12, fps) == true
    twice = nearest([Fraction(time, 1000) for time in times], Fraction(1717, 1000), 12, 10)
    assert len(set(twice)) < 12 and len(set(numbers(tmp_path / name, 1.717, 12, 10))) == 12


def test_times_count_from_the_first_time_stamp(tmp_path):
    write_pictures(tmp_path / "v.mkv", [numbered(n) for n in range(50)], 25, times=[700 + 40 * n for n in range(50)])
    assert numbers(tmp_path / "v.mkv", 0, 4, 8) == [0, 3, 6, 9]
    assert numbers(tmp_path / "v.mkv", 1.0, 4, 8) == [25, 28, 31, 34]
    assert decode.video_seconds(tmp_path / "v.mkv") == pytest.approx(2.0, abs=0.002)


EXACT = [
    ("a.mp4", "libx264"),
    ("b.mkv", "libx264"),
    ("c.webm", "libvpx-vp9"),
    ("d.mov", "libx264"),
    ("e.ts", "libx264"),
]


def test_a_video_as_long_as_a_clip_gives_one_of_all_its_pictures(tmp_path):
    (tmp_path / "v").mkdir()
    for name, codec in EXACT:
        write_pictures(tmp_path / "v" / name, [numbered(n) for n in range(16)], 8, codec)
        assert numbers(tmp_path / "v" / name, 0, 16, 8) == list(range(16))
        assert decode.video_seconds(tmp_path / "v" / name) == pytest.approx(2.0, abs=1e-3)
    assert run(tmp_path / "v", tmp_path / "o", "--height", 64, "--width", 64, "--workers", 1) == 0
    assert [len(line["clips"]) for line in report(tmp_path / "o").values()] == [1] * 5
    assert [meta["source"]["start"] for meta in metas(tmp_path / "o")] == [0] * 5


SOUND = [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.webm", "libvpx-vp9"), ("v.ts", "libx264"), ("v.wmv", "wmv2")]


@pytest.mark.parametrize("name, codec", [*SOUND, ("v.flv", "flv"), ("v.avi", "mpeg4")])
def test_sound_does_not_count_as_length(tmp_path, name, codec):
    write_pictures(tmp_path / name, [numbered(n) for n in range(75)], 25, codec, sound=8.0)
    seconds = decode.video_seconds(tmp_path / name)
    # AVI begins with the codec's delay, as an empty picture
    assert seconds == pytest.approx(3.0, abs=0.041 if name == "v.avi" else 0.005)
    assert clips.middle_start(seconds, 16, 8) == pytest.approx(0.5, abs=0.021)


# Geometry


def turn(degrees):
    radians = math.radians(degrees)
    return math.cos(radians), math.sin(radians), -math.sin(radians), math.cos(radians)


DIHEDRAL = [
    (1, 0, 0, 1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (-1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
    (0, 1, -1, 0),
    (0, -1, 1, 0),
]


def shown_by(matrix, image):
    """The definition of a display matrix, point for point: (x, y) is shown at (a x + c y, b x + d y), moved to fit."""
    a, b, c, d = matrix
    height, width = image.shape[:2]
    x, y = (grid - (side - 1) / 2 for grid, side in zip(np.meshgrid(range(width), range(height)), (width, height)))
    u, v = a * x + c * y, b * x + d * y
    out = np.zeros((height, width, 3) if a else (width, height, 3), np.uint8)
    rows, columns = out.shape[:2]
    out[(v + (rows - 1) / 2).round().astype(int), (u + (columns - 1) / 2).round().astype(int)] = image
    return out


@pytest.mark.parametrize("matrix", DIHEDRAL)
def test_every_display_matrix_is_applied(tmp_path, matrix):
    video = [frame.transpose(1, 2, 0) for frame in render(random_scene([3], 4, 48, 64))]
    path = tmp_path / "v.mp4"
    write_pictures(path, video, 8)
    set_display_matrix(path, *matrix)
    true = shown_by(matrix, video[0]).astype(int)
    clip = clips.read_clip(path, 0, 3, 8, *true.shape[:2]).frames[0].transpose(1, 2, 0)
    assert np.abs(clip - true).mean() < 5
    for found in (read_frames(path, 1)[0].permute(1, 2, 0).numpy(), read_video(path)[0][0]):
        assert np.array_equal(found, clip)


def test_other_angles_turn_the_picture_within_its_size(tmp_path):
    x, y = np.meshgrid(range(80), range(60))
    smooth = np.clip(120 + 70 * np.sin(x / 9) + 50 * np.cos(y / 7), 0, 255)[..., None].repeat(3, -1).astype(np.uint8)
    path = tmp_path / "v.mp4"
    write_pictures(path, [smooth] * 3, 8)
    set_display_matrix(path, *turn(30))
    found = read_frames(path, 1)[0].permute(1, 2, 0).numpy()
    assert found.shape == (60, 80, 3) and not found[0, 0].any()
    cosine, sine = turn(30)[:2]
    for across, down in [(0, 0), (10, -5), (-12, 9), (20, 10)]:  # from the centre of the upright picture
        u, v = across * cosine - down * sine, across * sine + down * cosine
        at = cv2.getRectSubPix(found, (1, 1), (39.5 + u, 29.5 + v))[0, 0, 0]
        assert abs(int(at) - int(cv2.getRectSubPix(smooth, (1, 1), (39.5 + across, 29.5 + down))[0, 0, 0])) < 6
    set_display_matrix(path, *turn(90.4))
    assert read_frames(path, 1).shape == (1, 3, 80, 60)


def circle():
    """A circle of radius 40 in 192 x 128, stored with pixels twice as wide as high, (128, 96, 3)."""
    y, x = np.mgrid[:128, :192]
    image = np.where((y - 64) ** 2 + (x - 96) ** 2 < 40**2, 230, 30).astype(np.uint8)[..., None].repeat(3, -1)
    return cv2.resize(image, (96, 128), interpolation=cv2.INTER_AREA)


def spans(image):
    """Width and height of what is bright."""
    return [int(np.ptp(np.where((image[..., 0] > 128).any(axis)))) for axis in (0, 1)]


def pixels_of_shape(width, height=1):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(width, height)

    return setup


@pytest.mark.parametrize(
    "name, codec", [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.avi", "mpeg4"), ("v.ts", "libx264")]
)
def test_a_circle_is_round(tmp_path, name, codec):
    write_pictures(tmp_path / name, [circle()] * 6, 25, codec, setup=pixels_of_shape(2), b="4000000")
    assert spans(clips.read_clip(tmp_path / name, 0, 2, 8, 128, 192).frames[0].transpose(1, 2, 0)) == [78, 78]
    found = read_frames(tmp_path / name, 1)[0].permute(1, 2, 0).numpy()
    assert found.shape == (128, 192, 3) and spans(found) == [78, 78]


def test_pixels_that_are_not_square_are_turned_too(tmp_path):
    path = tmp_path / "v.mp4"
    write_pictures(path, [circle()] * 6, 25, setup=pixels_of_shape(2))
    set_display_matrix(path, 0, 1, -1, 0)
    assert spans(clips.read_clip(path, 0, 2, 8, 192, 128).frames[0].transpose(1, 2, 0)) == [78, 78]
    assert read_frames(path, 1).shape == (1, 3, 192, 128)


def test_pixels_of_no_camera_are_a_reason_and_a_line_of_a_picture_takes_little_memory(tmp_path):
    path = tmp_path / "v.mp4"
    write_pictures(path, [circle()] * 6, 25, setup=pixels_of_shape(40))
    with pytest.raises(BadClip, match="has pixels of 40:1, expected between 1:16 and 16:1"):
        clips.read_clip(path, 0, 2, 8, 64, 64)
    with pytest.raises(BadClip, match="v.mp4: has pixels of 40:1"):
        read_video(path)
    line = np.repeat(np.arange(40000)[None, :, None] // 160, 2, 0).repeat(3, 2).astype(np.uint8)
    write_pictures(tmp_path / "line.mkv", [line] * 3, 8, "ffv1", "yuv444p")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clip = clips.read_clip(tmp_path / "line.mkv", 0, 3, 8, 320, 512).frames  # 320 x 6,400,000 as a whole
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300e3  # KiB
    assert np.abs(clip[0, 0].astype(int) - 125).max() <= 2  # the middle


# Fields


def test_fields_are_made_whole_and_the_report_says_so(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    path = tmp_path / "v/a.mp4"
    write_pictures(path, woven(15), 25, **FIELDS)
    write_pictures(tmp_path / "v/b.mp4", woven(15), 25)
    for index, frame in enumerate(clips.read_clip(path, 0.2, 4, 12.5, 64, 96).frames[:, 0].astype(int)):
        edges = [int(np.argmax(row > 128)) for row in frame[8:56]]
        assert set(edges) == {10 + 4 * (5 + 2 * index)}  # of the first field in every row
    assert clips.read_clip(path, 0.2, 4, 12.5, 64, 96).notes == ("deinterlaced",)
    combed = clips.read_clip(tmp_path / "v/b.mp4", 0.2, 4, 12.5, 64, 96)  # not marked: what a player shows
    assert combed.notes == () and len({int(np.argmax(row > 128)) for row in combed.frames[0, 0, 8:56]}) == 2
    assert run(tmp_path / "v", tmp_path / "o", "--frames", 3, "--height", 64, "--width", 64, "--workers", 1) == 0
    assert "\ndeinterlaced: 1 video, such as a.mp4" in capsys.readouterr().out
    assert {name: line["notes"] for name, line in report(tmp_path / "o").items()} == {
        "a.mp4": ["deinterlaced"],
        "b.mp4": [],
    }
    first, second = metas(tmp_path / "o")
    assert first["source"]["notes"] == ["deinterlaced"] and "notes" not in second["source"]


def test_whole_pictures_among_interlaced_ones_stay_as_they_are(tmp_path):
    """Two films after each other, as broadcasts have them: each picture is treated as it is marked."""
    for name, options in (("whole", {}), ("woven", FIELDS)):
        write_pictures(tmp_path / f"{name}.ts", woven(10), 25, bf="0", g="5", **options)
    with av.open(str(tmp_path / "v.ts"), "w") as joined:
        stream = None
        for place, name in enumerate(("whole", "woven")):
            with av.open(str(tmp_path / f"{name}.ts")) as part:
                stream = stream or joined.add_stream_from_template(part.streams.video[0])
                for packet in part.demux(video=0):
                    if packet.dts is not None:
                        packet.dts, packet.pts = (stamp + place * 36000 for stamp in (packet.dts, packet.pts))
                        packet.stream = stream
                        joined.mux(packet)
    found = list(decode.pictures(tmp_path / "v.ts"))
    assert [picture.notes for picture in found] == [()] * 10 + [("deinterlaced",)] * 10
    alone = list(decode.pictures(tmp_path / "whole.ts"))
    for picture, other in zip(found, alone):
        assert np.array_equal(picture.frame.to_ndarray(format="rgb24"), other.frame.to_ndarray(format="rgb24"))


def test_turned_interlaced_pictures_are_turned(tmp_path):
    path = tmp_path / "v.mp4"
    write_pictures(path, woven(15), 25, **FIELDS)
    set_display_matrix(path, 0, 1, -1, 0)
    frame = clips.read_clip(path, 0.2, 2, 12.5, 96, 64).frames[0, 0]
    assert {int(np.argmax(column > 128)) for column in frame[:, 8:56].T} == {30}


# Streams


def boxes(data, begin, end):
    while begin + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, begin)
        yield kind, begin, begin + size
        begin += size


def box(kind, *content):
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def with_cover(data):
    """An mp4 whose moov comes last, with a cover picture."""
    begin, end = next((a, b) for kind, a, b in boxes(data, 0, len(data)) if kind == b"moov")
    assert end == len(data)
    encoded = cv2.imencode(".jpg", np.full((240, 320, 3), (0, 0, 255), np.uint8))[1].tobytes()
    item = box(b"covr", box(b"data", struct.pack(">II", 13, 0), encoded))
    handler = box(b"hdlr", bytes(8), b"mdirappl", bytes(9))
    udta = box(b"udta", box(b"meta", bytes(4), handler, box(b"ilst", item)))
    return data[:begin] + struct.pack(">I", end - begin + len(udta)) + data[begin + 4 :] + udta


def test_the_stream_that_is_shown_is_read(tmp_path):
    """Of two, the one that is switched on; a cover picture is none."""
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, (height, width) in zip(streams, ((96, 160), (48, 80))):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for stream, base in zip(streams, (100, 500)):
            for number in range(25):
                frame = av.VideoFrame.from_ndarray(numbered(base + number, stream.height, stream.width), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    data = bytearray((tmp_path / "two.mp4").read_bytes())
    assert numbers(tmp_path / "two.mp4", 0, 4, 8)[0] == 100
    first = data.index(b"tkhd")
    data[first + 7] &= ~1  # the first is switched off, and the second on
    data[data.index(b"tkhd", first + 1) + 7] |= 1
    (tmp_path / "off.mp4").write_bytes(data)
    assert numbers(tmp_path / "off.mp4", 0, 4, 8) == [500, 503, 506, 509]
    write_pictures(tmp_path / "v.mp4", [numbered(n) for n in range(25)])
    (tmp_path / "cover.mp4").write_bytes(with_cover((tmp_path / "v.mp4").read_bytes()))
    with av.open(str(tmp_path / "cover.mp4")) as container:
        assert len(container.streams.video) == 2
    assert numbers(tmp_path / "cover.mp4", 0, 4, 8) == [0, 3, 6, 9]


def test_a_song_with_a_cover_has_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    (tmp_path / "cover.mp4").write_bytes(with_cover((tmp_path / "song.mp4").read_bytes()))
    for name, reason in (("song", "has no video stream"), ("cover", "has a cover picture and no video stream")):
        with pytest.raises(BadClip, match=f"^{reason}$"):
            decode.video_seconds(tmp_path / f"{name}.mp4")
        with pytest.raises(BadClip, match=f"^{reason}$"):
            clips.read_clip(tmp_path / f"{name}.mp4", 0, 4, 8, 48, 64)


def test_a_playlist_that_pretends_to_be_a_video_opens_no_connection(tmp_path):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def listen():
            try:
                asked.append(server.accept()[1])
            except TimeoutError:
                pass

        (tmp_path / "v").mkdir()
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:{server.getsockname()[1]}/a.ts\n"
        (tmp_path / "v/a.mp4").write_text(f"{text}#EXT-X-ENDLIST\n")
        (tmp_path / "v/a.ts").write_text(f"{text}#EXT-X-ENDLIST\n")
        with tarfile.open(tmp_path / "v/b.tar", "w") as tar:
            tar.add(tmp_path / "v/a.ts", "x.ts")
        listener = threading.Thread(target=listen)
        listener.start()
        for video in videos_in(str(tmp_path / "v")):
            with pytest.raises(BadClip):
                clips.read_clip(video.source(), 0, 3, 8, 64, 64)
        listener.join()
    assert not asked
