"""Colours of videos against the closed forms of ITU-R BT.601, 709, 2020 and 2100, and what is written."""

from __future__ import annotations

import tarfile
from types import SimpleNamespace

import av
import numpy as np
import pytest

from datamodules.prepare.clips import read_clip
from datamodules.prepare.folder import read_report
from remoco.cli import main
from remoco.common.errors import BadClip
from remoco.common.videos import colour, mp4
from remoco.common.videos.files import read_frames, write_video
from remoco.common.videos.tone import pq_nits, roll_off

PATCHES = [
    (200, 30, 30), (30, 180, 60), (40, 60, 200), (220, 200, 40),
    (60, 190, 200), (190, 60, 180), (128, 128, 128), (235, 225, 210),
]  # fmt: skip
HEIGHT, WIDTH = 64, 128  # 4 x 2 patches of 32 x 32
KR_KB = {6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
TOP, LEFT = np.repeat([16, 48], 4), np.tile([16, 48, 80, 112], 2)  # the patches' middles
IMAGE = np.array(PATCHES, np.uint8).reshape(2, 4, 3).repeat(32, 0).repeat(32, 1)


def samples_of(rgb, matrix, full, bits):
    """Y, Cb, Cr of a colour in 0..255, the forms of BT.601, 709 and 2020 (non-constant luminance)."""
    kr, kb = KR_KB[matrix]
    r, g, b = (n / 255 for n in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    step, top = 1 << (bits - 8), (1 << bits) - 1
    if full:
        return round(y * top), round(cb * top + 128 * step), round(cr * top + 128 * step)
    return round((219 * y + 16) * step), round((224 * cb + 128) * step), round((224 * cr + 128) * step)


def frame_of(channels, form, matrix=2, tagged=0):
    """A frame of planes (H, W), of which those of chroma are thinned out as `form` has them."""
    frame = av.VideoFrame(channels[0].shape[1], channels[0].shape[0], form)
    for part, values in zip(frame.format.components, channels, strict=True):
        plane = frame.planes[part.plane]
        values = values[:: values.shape[0] // plane.height, :: values.shape[1] // plane.width]
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        data = np.ascontiguousarray(values.astype("<u2" if part.bits > 8 else np.uint8)).view(np.uint8)
        rows[:, : data.shape[1]] = data
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = matrix, tagged
    return frame


def patches(matrix, full, bits, size=(HEIGHT, WIDTH)):
    """Y, Cb, Cr planes of the patches."""
    values = np.array([samples_of(rgb, matrix, full, bits) for rgb in PATCHES]).reshape(2, 4, 3)
    return [values[..., channel].repeat(size[0] // 2, 0).repeat(size[1] // 4, 1) for channel in range(3)]


def off(image):
    """How far (H, W, 3) of any size is from the patches, at most."""
    scale = image.shape[0] / HEIGHT, image.shape[1] / WIDTH
    found = image[(TOP * scale[0]).astype(int), (LEFT * scale[1]).astype(int)]
    return int(np.abs(found.astype(int) - np.array(PATCHES)).max())


@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "form", ["yuv420p", "yuv422p", "yuv444p", "yuv411p", "yuv420p10le", "yuv422p10le", "yuv444p12le", "yuv444p16le"]
)
def test_flat_colours_are_those_of_the_closed_form(matrix, full, form):
    bits = av.VideoFormat(form).components[0].bits
    frame = frame_of(patches(matrix, full, bits), form, matrix, 2 if full else 1)
    assert off(colour.rgb_of(frame)) <= (2 if bits == 8 else 1) and not colour.notes_of(frame)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "packed, planar",
    [("nv12", "yuv420p"), ("nv21", "yuv420p"), ("p010le", "yuv420p10le"), ("yuv420p10be", "yuv420p10le"),
     ("yuva444p", "yuv444p"), ("yuyv422", "yuv422p"), ("uyvy422", "yuv422p")],
)  # fmt: skip
def test_the_same_samples_in_another_order_are_the_same_colours(packed, planar, full):
    frame = frame_of(patches(1, full, av.VideoFormat(planar).components[0].bits), planar, 1, 2 if full else 1)
    other = frame.reformat(format=packed, src_color_range="JPEG", dst_color_range="JPEG")  # no change of range
    other.colorspace, other.color_range = 1, 2 if full else 1
    assert np.array_equal(colour.rgb_of(other), colour.rgb_of(frame)) and off(colour.rgb_of(frame)) <= 2


def test_the_formats_of_jpeg_are_full_whatever_they_are_tagged():
    for tagged in (0, 2):
        assert off(colour.rgb_of(frame_of(patches(6, True, 8), "yuvj422p", 6, tagged))) <= 2


def test_what_says_nothing_is_read_as_players_do():
    for size, matrix in (((128, 256), 6), ((576, 720), 6), ((720, 960), 1), ((540, 1280), 1)):
        frame = frame_of(patches(matrix, False, 8, size), "yuv420p")
        assert off(colour.rgb_of(frame)) <= 2
        assert off(colour.rgb_of(frame_of(patches(7 - matrix, False, 8, size), "yuv420p"))) > 10


def test_rgb_and_grey_are_full_where_nothing_else_is_said():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    channels = [image[..., channel] for channel in range(3)]
    assert np.array_equal(colour.rgb_of(frame_of(channels, "gbrp", 0)), image)
    assert np.array_equal(colour.rgb_of(frame_of([c.astype(int) * 257 for c in channels], "gbrp16le", 0)), image)
    limited = [np.rint(c / 255 * 219 + 16) for c in channels]
    assert np.abs(colour.rgb_of(frame_of(limited, "gbrp", 0, 1)).astype(int) - image).max() <= 1
    for form in ("rgb24", "bgr24", "bgra", "argb"):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=form)
        assert np.array_equal(colour.rgb_of(frame), image), form
    for form in ("rgb48le", "rgb48be"):
        assert np.array_equal(
            colour.rgb_of(av.VideoFrame.from_ndarray(image.astype(np.uint16) * 257, format=form)), image
        )
    grey = channels[0]
    assert np.array_equal(colour.rgb_of(frame_of([grey], "gray")), np.dstack([grey] * 3))
    assert np.array_equal(colour.rgb_of(frame_of([grey.astype(int) * 1023 / 255 + 0.5], "gray10le"))[..., 0], grey)
    assert np.abs(colour.rgb_of(frame_of([limited[0]], "gray", 1, 1))[..., 1].astype(int) - grey).max() <= 1


def test_chroma_lies_on_the_left_sample_and_between_rows():
    luma = np.full((8, 16), 128)
    cr = np.full((8, 16), 128)
    cr[:, 8:] = 160  # in 4:2:0 samples 0..3 and 4..7, the fifth on column 8
    red = colour.rgb_of(frame_of([luma, np.full((8, 16), 128), cr], "yuv420p", 6, 2))[4, :, 0].astype(int)
    assert red[6] == red[0] and red[8] == red[15] and red[7] - (red[0] + red[15]) // 2 in (0, 1)
    with pytest.raises(BadClip, match="colour matrix 14 .ICtCp., expected BT.601"):
        colour.rgb_of(frame_of([luma] * 3, "yuv444p", 14, 1))


# Light


def nits_frame(rgb, transfer, bits=10):
    """A 4:4:4 frame of BT.2020 signals in 0..1, (N, 3), a column of 8 for each."""
    kr, kb = KR_KB[9]
    r, g, b = np.asarray(rgb, np.float64).T
    y = kr * r + (1 - kr - kb) * g + kb * b
    step = 1 << (bits - 8)
    values = (219 * y + 16) * step, (224 * (b - y) / 1.8814 + 128) * step, (224 * (r - y) / 1.4746 + 128) * step
    frame = frame_of([np.tile(np.rint(v).repeat(8), (8, 1)) for v in values], "yuv444p10le", 9, 1)
    return with_light(frame, transfer)


def with_light(frame, transfer):
    if hasattr(frame, "color_trc"):
        frame.color_trc, frame.color_primaries = transfer, 9
    colour.remember(frame, SimpleNamespace(codec_context=SimpleNamespace(color_trc=transfer, color_primaries=9)))
    return frame


def pq(nits):
    """The inverse EOTF of BT.2100, table 4."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (np.asarray(nits) / 10_000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def test_pq_becomes_what_an_sdr_display_shows():
    nits = np.array([0, 1, 10, 50, 100, 150, 203, 400, 1000, 4000, 10_000])
    assert np.allclose(pq_nits(pq(nits)), nits)
    frame = nits_frame(pq(nits)[:, None].repeat(3, 1), 16)
    shown = colour.rgb_of(frame)[4, 4::8].astype(int)
    assert colour.notes_of(frame) == ("tone-mapped from PQ",)
    assert (
        (np.ptp(shown, axis=1) <= 1).all() and (np.diff(shown[:, 1]) >= 0).all() and (np.diff(shown[:8, 1]) > 0).all()
    )
    assert 247 <= shown[6, 1] < 255 and shown[-1, 1] == 255  # BT.2408: 203 cd/m2 is white
    below = 255 * (nits[:6] / 203) ** (1 / 2.4)  # BT.1886
    assert np.abs(shown[:6, 1] - below).max() <= 1.5
    assert np.all(np.diff(roll_off(np.linspace(0.95, 6, 50))) > 0)


def test_hlg_becomes_what_a_display_of_1000_nits_shows():
    signal = np.array([0, 0.25, 0.5, 0.75, 0.9, 1.0])
    frame = nits_frame(signal[:, None].repeat(3, 1), 18)
    shown = colour.rgb_of(frame)[4, 4::8, 1].astype(int)
    assert colour.notes_of(frame) == ("tone-mapped from HLG",)
    assert 247 <= shown[3] < 255 and (np.diff(shown) >= 0).all()  # BT.2408: 75 % is 203 cd/m2
    half = 1000 * (0.5**2 / 3) ** 1.2  # BT.2100, table 5
    assert abs(shown[2] - 255 * (half / 203) ** (1 / 2.4)) <= 1.5


def test_wide_primaries_become_those_of_bt709():
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    light = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.125]]) * 100  # BT.709, cd/m2
    shown = colour.rgb_of(nits_frame(pq(light @ to_2020.T), 16))[4, 4::8].astype(float)
    wanted = 255 * (light / 203) ** (1 / 2.4)
    assert np.abs(shown - wanted)[light > 0].max() <= 2 and shown[light == 0].max() <= 25  # 10 bits near black
    green = colour.rgb_of(nits_frame(pq(np.array([[0.0, 100, 0]])), 16))[4, 4]
    assert green[0] == green[2] == 0 and green[1] > 150  # outside of BT.709: cut off, still green


# Files


def encode(path, frames, codec, form, options=None, context=None, metadata=None):
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, form
        stream.metadata.update(metadata or {})
        for name, value in (context or {}).items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "matrix, full, form, tagged",
    [(6, False, "yuv420p", True), (1, False, "yuv420p", True), (1, True, "yuv420p", True),
     (9, False, "yuv420p10le", True), (1, False, "yuv444p", True), (6, False, "yuv420p", False)],
)  # fmt: skip
def test_files_are_read_in_their_colours(tmp_path, matrix, full, form, tagged):
    bits = av.VideoFormat(form).components[0].bits
    tags = {"colorspace": matrix, "color_primaries": matrix, "color_trc": 1, "color_range": 2 if full else 1}
    frames = [frame_of(patches(matrix, full, bits), form) for _ in range(4)]
    path = encode(tmp_path / "a.mp4", frames, "libx264", form, {"crf": "1"}, tags if tagged else None)
    clip = read_clip(path, 0.0, 4, 8, HEIGHT, WIDTH)
    assert off(clip.frames[2].transpose(1, 2, 0)) <= 2 and clip.notes == ()
    assert off(read_frames(path, 4)[2].permute(1, 2, 0).numpy()) <= 2


def test_a_clip_of_hdr_says_so(tmp_path):
    values = np.tile(np.rint(876 * pq(np.array([10.0, 100, 203, 1000])) + 64).repeat(32), (64, 1))
    grey = np.full((64, 128), 512)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    frames = [frame_of([values, grey, grey], "yuv420p10le", 9, 1) for _ in range(4)]
    clip = read_clip(
        encode(tmp_path / "pq.mp4", frames, "libx264", "yuv420p10le", {"crf": "1"}, tags), 0.0, 4, 8, 64, 128
    )
    assert clip.notes == ("tone-mapped from PQ",) and 247 <= clip.frames[1, 0, 32, 80] < clip.frames[1, 0, 32, 112]


@pytest.mark.parametrize(
    "name, codec, form",
    [("a.webm", "libvpx-vp9", "yuva420p"), ("b.webm", "libvpx", "yuva420p"), ("c.mov", "qtrle", "argb"),
     ("d.mov", "png", "rgba"), ("e.mov", "prores_ks", "yuva444p10le")],
)  # fmt: skip
def test_what_lies_behind_transparent_parts(tmp_path, name, codec, form):
    rgba = np.dstack([np.full((64, 96, 3), (200, 30, 30)), np.full((64, 96), 255)]).astype(np.uint8)
    rgba[:, 32:64] = (30, 60, 200, 128)
    rgba[:, 64:] = (255, 0, 255, 0)
    frames = [av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=form) for _ in range(4)]
    vpx = {"crf": "4", "b": "1000000", "auto-alt-ref": "0"} if "vpx" in codec else None
    path = encode(tmp_path / name, frames, codec, form, vpx, metadata={"alpha_mode": "1"} if vpx else None)
    for background, half in ((colour.WHITE, (142, 157, 227)), ((0, 255, 0), (15, 157, 100))):
        clip = read_clip(path, 0.0, 4, 8, 64, 96, background)
        found = clip.frames[1][:, 32, [8, 48, 88]].T.astype(int)
        assert np.abs(found - [(200, 30, 30), half, background]).max() <= 4, found
        assert clip.notes == ("transparent parts laid over a background",)


def test_prepare_reports_what_it_did_to_colours(tmp_path, capsys):
    rgba = np.full((64, 64, 4), (255, 0, 255, 0), np.uint8)
    rgba[16:48, 16:48] = (200, 30, 30, 255)
    layers = [
        av.VideoFrame.from_ndarray(np.roll(rgba, 2 * i, 1), format="rgba").reformat(format="argb") for i in range(8)
    ]
    encode(tmp_path / "videos/layer.mov", layers, "qtrle", "argb")
    grey, tags = np.full((64, 64), 512), {"colorspace": 9, "color_primaries": 9, "color_trc": 18, "color_range": 1}
    steps = [np.full((64, 64), 200 + 40 * i) for i in range(8)]
    frames = [frame_of([values, grey, grey], "yuv420p10le", 9, 1) for values in steps]
    encode(tmp_path / "videos/hlg.mp4", frames, "libx264", "yuv420p10le", {"crf": "1"}, tags)
    flags = "--height", "64", "--width", "64", "--frames", "4", "--workers", "1"
    command = ["prepare", str(tmp_path / "videos"), str(tmp_path / "shards"), *flags]
    assert main([*command, "--background", "#000080"]) == 0
    said = capsys.readouterr().out
    assert "tone-mapped from HLG: 1 video, such as hlg.mp4" in said
    assert "transparent parts laid over a background: 1 video, such as layer.mov" in said
    lines = {line["video"]: line["notes"] for line in read_report(tmp_path / "shards")}
    assert lines == {"hlg.mp4": ["tone-mapped from HLG"], "layer.mov": ["transparent parts laid over a background"]}
    (shard,) = (tmp_path / "shards").glob("*.tar")
    with tarfile.open(shard) as archive:
        data = {member.name: archive.extractfile(member).read() for member in archive if member.name.endswith(".mp4")}
    (clip,) = (data[name] for name in data if "layer" in name)
    corner = mp4.decode_mp4(clip, (4, 3, 64, 64))[0, :, 4, 4].astype(int)
    assert np.abs(corner - (0, 0, 128)).max() <= 5
    assert main(command) == 2 and "behind transparent parts is [0, 0, 128], not white" in capsys.readouterr().err


def test_what_is_written_is_bt709_and_says_so(tmp_path):
    video = np.repeat(IMAGE[None], 4, 0)
    write_video(tmp_path / "a.mp4", video, 8)
    (tmp_path / "b.mp4").write_bytes(mp4.encode_mp4(video.transpose(0, 3, 1, 2), 8, crf=4))
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as container:
            context = container.streams.video[0].codec_context
            frame = next(container.decode(video=0))
            tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tags == (1, 1, 1, 1) and (frame.colorspace, frame.color_range) == (1, 1)
        luma = np.frombuffer(frame.planes[0], np.uint8).reshape(HEIGHT, -1)[TOP, LEFT].astype(int)
        assert np.abs(luma - [samples_of(rgb, 1, False, 8)[0] for rgb in PATCHES]).max() <= 1
        assert off(read_frames(tmp_path / name, 4)[3].permute(1, 2, 0).numpy()) <= 3
    decoded = mp4.decode_mp4((tmp_path / "b.mp4").read_bytes(), (4, 3, HEIGHT, WIDTH))
    assert off(decoded[3].transpose(1, 2, 0)) <= 3
    assert np.array_equal(mp4.decode_first_frame((tmp_path / "b.mp4").read_bytes(), (3, HEIGHT, WIDTH)), decoded[0])


def test_older_clips_without_tags_stay_what_they_are(tmp_path):
    frames = [frame_of(patches(6, False, 8), "yuv420p") for _ in range(4)]
    path = encode(tmp_path / "old.mp4", frames, "libx264", "yuv420p", {"crf": "4"})
    decoded = mp4.decode_mp4(path.read_bytes(), (4, 3, HEIGHT, WIDTH))
    with av.open(str(path)) as container:
        before = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert np.array_equal(decoded.transpose(0, 2, 3, 1), np.stack(before)) and off(before[0]) <= 4
