"""Still pictures as viewers show them: profiles, transparency, depth, orientation; files, PIL images, arrays."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from datamodules.drawings import read_drawing
from datamodules.drawings.arguments import read_brush
from datamodules.drawings.arguments import read_image as handed_in
from remoco.common.errors import UserError
from remoco.common.picture_files import FORMATS, read_depth, read_image, read_mask
from remoco.common.pictures import colour_of

COLOURS = [(230, 40, 40), (40, 200, 60), (50, 70, 220), (240, 220, 60)]
HEIGHT, WIDTH = 24, 40
BASE = np.array(COLOURS, np.uint8).reshape(2, 2, 3).repeat(12, 0).repeat(20, 1)
WHITE = np.array([255, 255, 255])


def quarters(image):
    """(4, 3): the colours in the middles of the quarters."""
    height, width = image.shape[:2]
    return np.array([image[height * y // 4, width * x // 4] for y in (1, 3) for x in (1, 3)]).astype(int)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def everywhere(data, background="white"):
    """What a file's bytes become as a file, and as a PIL image that is handed in."""
    found = read_image(data, background=colour_of(background))
    assert found.dtype == np.uint8 and found.shape[2] == 3
    assert np.array_equal(found, handed_in(Image.open(io.BytesIO(data)), background))
    return found


def png(header, rows, *chunks):
    """A PNG of its header (width, height, depth, colour type), rows of bytes, and other chunks before them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = b"".join(chunk(*one) for one in chunks)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)) + body
            + chunk(b"IDAT", data) + chunk(b"IEND", b""))  # fmt: skip


# Profiles


def icc(space, pcs, kind, tags):
    """A profile of version 2.4: `tags` name -> data."""
    head = struct.pack(">4sI4s4s4s", b"none", 0x02400000, kind, space, pcs) + b"\0" * 12 + b"acsp" + b"\0" * 28
    head += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    head += b"\0" * (124 - len(head))
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\2P\0" + b"\0" * 78, b"cprt": b"text\0\0\0\0none\0",
            b"wtpt": xyz(0.9642, 1, 0.8249)} | tags  # fmt: skip
    table, body, begin = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", begin + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    return struct.pack(">I", begin + len(body)) + head + struct.pack(">I", len(tags)) + table + body


def xyz(*values):
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(value * 256))


# Adobe RGB (1998): primaries adapted to D50, gamma 563/256; its gamut is wider than that of sRGB, its reds the same
ADOBE = icc(b"RGB ", b"XYZ ", b"mntr", {
    b"rXYZ": xyz(0.60974, 0.31111, 0.01947), b"gXYZ": xyz(0.20528, 0.62567, 0.06087),

    b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
    b"rTRC": gamma(563 / 256), b"gTRC": gamma(563 / 256), b"bTRC": gamma(563 / 256),
})  # fmt: skip
GREY18 = icc(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": gamma(1.8)})


def from_srgb(rgb):
    """sRGB 0..255 -> Adobe RGB 0..255 by IEC 61966-2-1 and Adobe's matrix, in closed form."""
    signal = np.asarray(rgb) / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    of_adobe = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
    return 255 * np.clip(np.linalg.solve(of_adobe, to_xyz @ light.T).T, 0, 1) ** (256 / 563)


def test_profiles_are_converted_to_srgb():
    stored = np.rint(from_srgb(BASE.reshape(-1, 3))).astype(np.uint8).reshape(BASE.shape)
    assert np.abs(quarters(stored) - COLOURS).max() > 15
    for kind, options in (
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
    ):
        shown = everywhere(saved(stored, kind, icc_profile=ADOBE, **options))
        assert np.abs(quarters(shown) - COLOURS).max() <= 3, kind
    rgba = np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)])
    rgba[:12, :20, 3] = 0
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).quantize(8)):
        shown = quarters(everywhere(saved(image, icc_profile=ADOBE)))
        assert (shown[0] == 255).all() and np.abs(shown[1:] - COLOURS[1:]).max() <= 3, image.mode


def test_profiles_of_grey_and_of_inks_are_converted():
    steps = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None], 8, 0)
    light = (steps / 255.0) ** 1.8
    wanted = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    shown = everywhere(saved(steps, icc_profile=GREY18))
    assert np.abs(shown - wanted[..., None]).max() <= 1.5 and np.abs(shown[..., 0].astype(int) - steps).max() > 5
    deep = everywhere(saved(Image.fromarray(steps.astype(np.uint16) * 257), icc_profile=GREY18))
    assert np.array_equal(deep, shown)
    # a press whose 16 corners of ink are known colours: lut8 to Lab, one grid point at each end
    lab = [(100 - 25 * sum(ink), 40 * (ink[1] - ink[0]), 40 * (ink[2] - ink[0])) for ink in np.ndindex(2, 2, 2, 2)]
    grid = bytes(v for light, a, b in lab for v in (round(max(light, 0) * 2.55), a + 128, b + 128))
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid + ramp * 3
    press = icc(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table, b"A2B1": table})
    inks = np.zeros((8, 32, 4), np.uint8)
    inks[:, 8:16, 1], inks[:, 16:24, 2], inks[:, 24:, 3] = 255, 255, 255
    data = saved(Image.fromarray(inks, "CMYK"), "TIFF", icc_profile=press)
    shown = everywhere(data)[4, 4::8].astype(int)
    chosen = [lab[0], lab[4], lab[2], lab[1]]
    reference = ImageCms.applyTransform(
        Image.frombytes("LAB", (4, 1), bytes(v % 256 for light, a, b in chosen for v in (round(light * 2.55), a, b))),
        ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"),
    )
    assert np.abs(shown - np.asarray(reference)[0].astype(int)).max() <= 6, (shown, np.asarray(reference))
    plain = everywhere(saved(Image.fromarray(inks, "CMYK"), "TIFF"))[4, 4::8]
    assert np.array_equal(plain, [(255, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)])


@pytest.mark.parametrize(
    "profile", [b"no profile", ADOBE[:200], ADOBE[:-40], GREY18, b"\xff" * 4000, ADOBE.replace(b"mntr", b"link")]
)
def test_a_profile_that_does_not_fit_is_ignored(profile):
    shown = everywhere(saved(BASE, icc_profile=profile))
    assert np.array_equal(shown, BASE)


def test_a_profile_of_srgb_changes_nothing_that_is_seen():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.abs(everywhere(saved(image, icc_profile=srgb)).astype(int) - image).max() <= 1


# Transparency


def layer():
    """RGBA: the first quarter see-through over magenta, the third black at a half."""
    rgba = np.dstack([BASE, np.full(BASE.shape[:2], 255, np.uint8)])
    rgba[:12, :20] = (255, 0, 255, 0)
    rgba[12:, :20] = (0, 0, 0, 128)
    return rgba


@pytest.mark.parametrize(
    "background, rgb", [("white", (255, 255, 255)), ("#000", (0, 0, 0)), ("rgb(0, 128, 255)", (0, 128, 255))]
)
def test_transparent_parts_show_the_background(background, rgb):
    wanted = np.array([rgb, COLOURS[1], np.rint(np.array(rgb) * 127 / 255), COLOURS[3]])
    for data in (saved(layer()), saved(layer(), "WEBP", lossless=True, exact=True), saved(layer(), "TIFF")):
        assert np.array_equal(quarters(everywhere(data, background)), wanted)
    for array in (layer(), layer().astype(np.uint16) * 257, layer() / 255):
        assert np.array_equal(quarters(handed_in(array, background)), wanted)
    assert np.array_equal(quarters(handed_in(layer(), rgb)), wanted)
    pair = np.dstack([BASE[..., 0], layer()[..., 3]])
    grey = quarters(everywhere(saved(pair), background))
    assert np.array_equal(grey[0], rgb) and np.array_equal(grey[1], [40] * 3)


def test_colours_that_a_file_calls_transparent_show_the_background():
    palette = Image.fromarray(BASE).quantize(8)
    first = int(np.asarray(palette)[0, 0])
    wanted = np.array([WHITE, *COLOURS[1:]])
    assert np.array_equal(quarters(everywhere(saved(palette, transparency=first))), wanted)
    assert np.array_equal(quarters(everywhere(saved(palette, "GIF", transparency=first))), wanted)
    assert np.array_equal(quarters(everywhere(saved(BASE, transparency=COLOURS[0]))), wanted)
    soft = bytes(128 if index == first else 255 for index in range(8))  # a palette's entry of half the weight
    assert np.abs(quarters(everywhere(saved(palette, transparency=soft)))[0] - (WHITE + COLOURS[0]) / 2).max() <= 1
    grey = BASE[..., 0]
    key = (b"tRNS", struct.pack(">H", 230))
    assert quarters(everywhere(png((WIDTH, HEIGHT, 8, 0), [row.tobytes() for row in grey], key)))[:2, 0].tolist() == [
        255,
        40,
    ]
    rows = [row.tobytes() for row in (grey.astype(">u2") * 257)]
    key = (b"tRNS", struct.pack(">H", 230 * 257))
    assert quarters(everywhere(png((WIDTH, HEIGHT, 16, 0), rows, key)))[:2, 0].tolist() == [255, 40]
    rows = [row.tobytes() for row in (BASE.astype(">u2") * 257)]
    key = (b"tRNS", struct.pack(">3H", *(np.array(COLOURS[0]) * 257)))
    assert np.array_equal(quarters(everywhere(png((WIDTH, HEIGHT, 16, 2), rows, key))), wanted)


@pytest.mark.parametrize("background", ["", "no colour", "#12", (1, 2), (1, 2, 256), (0.5, 0, 0), 7, None, "#00ff0080"])
def test_what_is_no_colour_is_named(background):
    with pytest.raises(UserError, match="^--background is .*, expected a colour as `white`") as error:
        colour_of(background, "--background")
    assert "\n" not in str(error.value)


# Depth


def test_deep_pictures_are_scaled():
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    wanted = np.rint(grey / 257).astype(np.uint8)[..., None].repeat(3, 2)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(everywhere(saved(Image.fromarray(grey), kind)), wanted)
    assert np.array_equal(handed_in(Image.frombytes("I;16B", (WIDTH, HEIGHT), grey.astype(">u2").tobytes())), wanted)
    colours = np.stack([grey, grey[::-1], grey.T.reshape(HEIGHT, WIDTH)], axis=2)
    rgb = np.rint(colours / 257).astype(int)
    assert (
        np.abs(everywhere(png((WIDTH, HEIGHT, 16, 2), [row.astype(">u2").tobytes() for row in colours])) - rgb).max()
        <= 1
    )
    assert np.array_equal(handed_in(colours), rgb) and np.array_equal(handed_in(colours / 65535.0), rgb)
    assert np.array_equal(handed_in((colours / 65535.0).astype(np.float32)), rgb)


@pytest.mark.parametrize(
    "given, named",
    [
        (np.zeros((8, 8, 3), np.int64), "int64"), (np.zeros((8, 8)), r"\(8, 8\)"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"), (np.zeros((8, 8, 3), bool), "bool"),
        (np.full((8, 8, 3), 255.0), "floats outside of 0..1"), (np.full((8, 8, 3), np.nan), "floats outside of 0..1"),
        (np.full((8, 8, 3), -0.1), "floats outside"), (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (Image.new("F", (8, 8)), "numbers of 32"), (Image.new("I", (8, 8)), "numbers of 32"),
        (Image.new("LAB", (8, 8)), "mode LAB"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused_in_one_line(given, named):
    with pytest.raises(ValueError, match=f"image.*{named}.*expected") as error:
        handed_in(given)
    assert "\n" not in str(error.value) and "dtype" not in str(error.value)


# Orientation, formats, masks

STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, 3),
}  # fmt: skip


@pytest.mark.parametrize("value", STORED)
def test_pictures_are_upright(value, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = value
    deep = BASE[..., 0].astype(np.uint16) * 257
    for kind, options, most in (
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 98, "subsampling": 0}, 2),
    ):
        data = saved(np.ascontiguousarray(STORED[value](BASE)), kind, exif=exif, **options)
        assert np.abs(quarters(everywhere(data)) - COLOURS).max() <= most, kind
    data = saved(Image.fromarray(np.ascontiguousarray(STORED[value](deep))), exif=exif)
    assert np.array_equal(everywhere(data)[..., 1], BASE[..., 0])
    assert np.array_equal(
        read_depth(saved(Image.fromarray(np.ascontiguousarray(STORED[value](deep + 1))), exif=exif)),
        (deep + 1.0) / 1000,
    )
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:9, 5:12] = 255
    data = saved(np.ascontiguousarray(STORED[value](mask)), exif=exif)
    (tmp_path / "mask.png").write_bytes(data)
    for found in (
        read_mask(data),
        read_brush(Image.open(io.BytesIO(data))),
        read_brush(tmp_path / "mask.png"),
    ):
        assert np.array_equal(found, mask)


@pytest.mark.parametrize(
    "data, kind",
    [
        (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "HEIC"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"), (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1" + b"\0" * 99, "Photoshop"), (b"\xff\x0a" + b"\0" * 9, "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (struct.pack(">I", 24) + b"ftypisom\0\0\0\0", "a video"),
        (b"\x1aE\xdf\xa3" + b"\0" * 9, "a video"),
        (b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 99, "a camera's raw data"), (b"FUJIFILMCCD-RAW ", "a camera's raw data"),
        (b"<!DOCTYPE html><html>", "HTML"), (b"words", "of a kind that is not known"),
    ],
)  # fmt: skip
def test_other_formats_are_one_line_that_names_what_is_taken(data, kind, tmp_path):
    (tmp_path / "a.jpg").write_bytes(data)
    for read in (read_drawing, handed_in, read_mask):
        with pytest.raises(ValueError) as error:
            read(tmp_path / "a.jpg")
        text = str(error.value)
        assert text.startswith(f"{tmp_path}/a.jpg: not a readable picture: {kind}") and "\n" not in text, text
        assert f"expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}" in text


def test_a_raw_photo_is_not_taken_for_its_preview():
    for tag, value in ((50706, b"\1\4\0\0"), (254, 1)):
        with pytest.raises(UserError, match="a camera's raw data, expected PNG"):
            read_image(saved(BASE, "TIFF", tiffinfo={tag: value}))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(np.ascontiguousarray(np.rot90(BASE)), "AVIF", quality=95, subsampling="4:4:4", exif=exif)
    assert np.abs(quarters(everywhere(data)) - COLOURS).max() <= 4
    assert np.array_equal(quarters(everywhere(saved(layer(), "AVIF", quality=95), "#fff"))[0], WHITE)


def test_masks_of_any_kind_say_what_is_brushed():
    brushed = np.zeros((HEIGHT, WIDTH), bool)
    brushed[2:9, 5:12] = True
    deep = Image.fromarray(np.where(brushed, 3, 0).astype(np.uint16))
    palette = Image.fromarray(brushed.astype(np.uint8))
    palette.putpalette([10, 10, 10, 20, 20, 20])
    for image, options in ((deep, {}), (palette, {"transparency": 0}), (Image.fromarray(brushed), {})):
        assert np.array_equal(read_mask(saved(image, **options)) > 0, brushed), image.mode
        assert np.array_equal(read_brush(Image.open(io.BytesIO(saved(image, **options)))) > 0, brushed)
