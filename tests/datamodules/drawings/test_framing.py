"""The rule of size: which frame a picture gets, and that what was drawn lands where it was drawn."""

import numpy as np
import pytest

from datamodules.drawings import Drawing, FrameArea, Framing, framing_of
from datamodules.drawings.motion import SceneMotion
from remoco.common.errors import UserError

PAPER = FrameArea(320 * 512, 64)
SIZES = [(480, 640), (640, 480), (1080, 1920), (1921, 1079), (333, 777), (501, 335), (97, 61), (64, 64), (720, 405)]
FITS = ["crop", "pad", "stretch"]


def blob(size, at, sigma):
    """(H, W, 3) uint8: a round dark spot on white, wherever its centre is between the pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    spot = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
    return np.repeat((255 - spot).round().astype(np.uint8)[..., None], 3, 2)


def moments(image, around, sigma):
    """Centre of a spot, and its standard deviations in x and y, of the pixels near a place."""
    dark = 255.0 - image.mean(axis=2) if image.ndim == 3 else image.astype(float)
    y, x = np.mgrid[: dark.shape[0], : dark.shape[1]]
    dark = np.where(np.hypot((x - around[0]) / sigma[0], (y - around[1]) / sigma[1]) < 5, dark, 0)
    centre = np.array([(dark * x).sum(), (dark * y).sum()]) / dark.sum()
    spread = np.array([(dark * (x - centre[0]) ** 2).sum(), (dark * (y - centre[1]) ** 2).sum()]) / dark.sum()
    return centre, np.sqrt(spread)


@pytest.mark.parametrize(
    "picture, frame",
    [
        ((320, 512), (320, 512)), ((512, 512), (384, 384)), ((1080, 1920), (320, 512)), ((600, 400), (512, 320)),
        ((1920, 1080), (512, 320)), ((480, 640), (320, 448)), ((640, 480), (448, 320)), ((100, 3000), (64, 1920)),
        ((3000, 10), (2560, 64)),
    ],
)  # fmt: skip
def test_the_frame_has_the_bases_area_and_the_pictures_shape(picture, frame):
    assert framing_of(picture, PAPER).frame == frame


@pytest.mark.parametrize(
    "grid", [PAPER, FrameArea(576 * 1024), FrameArea(480 * 832, 16), FrameArea(64 * 64), FrameArea(480 * 720, 32)]
)
def test_no_frame_of_the_area_has_a_shape_that_is_nearer(grid):
    rng = np.random.default_rng(0)
    cells, sides = grid.area // grid.multiple**2, range(grid.multiple, 128 * grid.multiple, grid.multiple)
    for _ in range(20):
        picture = tuple(rng.integers(40, 3000, 2).tolist())
        height, width = framing_of(picture, grid).frame
        assert height % grid.multiple == width % grid.multiple == 0 and height * width <= cells * grid.multiple**2
        larger = [(h, w) for h in sides for w in sides if height * width <= h * w <= grid.area]

        def off(frame, picture=picture):
            return abs(np.log(frame[1] / frame[0] * picture[0] / picture[1]))

        assert off((height, width)) <= min(map(off, larger)) + 1e-12


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_drawn_lands_where_it_is_drawn(size, fit):
    """A spot at each end of a track, portrait, landscape and odd: within 0.05 px, round but where it is stretched."""
    rng = np.random.default_rng(size[0])
    ends = np.array([[0.3, 0.35], [0.7, 0.6]]) * size[::-1] + rng.uniform(0, 1, (2, 2))
    framing = framing_of(size, PAPER, fit, starts=ends[:1])
    sigma = max(2.0, 2.5 / framing.scale.min())
    image = np.minimum(*(blob(size, end, sigma) for end in ends))
    y, x = np.mgrid[: size[0], : size[1]]
    brush = np.hypot(x - ends[0][0], y - ends[0][1]) < 3 * sigma
    drawing = Drawing(image, [ends], brush).framed(framing)
    assert drawing.size == framing.frame and drawing.image.shape[:2] == drawing.brush.shape == framing.frame
    for end in drawing.tracks[0]:
        centre, spread = moments(drawing.image, end, sigma * framing.scale)
        assert np.abs(centre - end).max() < 0.05
        wanted = 1.0 if fit != "stretch" else framing.scale[0] / framing.scale[1]
        assert abs(spread[0] / spread[1] / wanted - 1) < 0.01
    before, after = (moments(each, ends[0], [np.inf, np.inf])[0] for each in (brush, drawing.brush))
    assert np.abs(after - framing.points(before)).max() < 0.25  # its border is of whole pixels
    assert np.allclose(framing.back(drawing.tracks[0]), ends)


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_is_what_the_grid_leaves_over_and_a_pad_loses_nothing(size):
    cropped, padded = (framing_of(size, PAPER, fit) for fit in ("crop", "pad"))
    left, top, right, bottom = cropped.box
    assert left >= 0 and top >= 0 and right <= size[1] and bottom <= size[0]
    shown = (right - left) * (bottom - top) / (size[0] * size[1])
    shapes = cropped.frame[1] / cropped.frame[0], size[1] / size[0]
    assert shown == pytest.approx(min(shapes) / max(shapes))
    left, top, right, bottom = padded.box
    assert left <= 0 and top <= 0 and right >= size[1] and bottom >= size[0]
    image = padded.image(np.zeros((*size, 3), np.uint8), (255, 128, 0))
    around = np.abs(padded.scale * [size[1], size[0]] - padded.frame[::-1]) / 2
    rows, columns = (np.arange(count) for count in padded.frame)
    inside = (rows > around[1] + 3)[:, None] & (rows < padded.frame[0] - around[1] - 3)[:, None]
    inside = inside & (columns > around[0] + 3) & (columns < padded.frame[1] - around[0] - 3)
    assert not image[inside].any()
    outside = (rows < around[1] - 3)[:, None] | (columns < around[0] - 3)
    assert (image[outside] == (255, 128, 0)).all()


def test_a_picture_of_the_frames_size_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (320, 512, 3), dtype=np.uint8)
    drawing = Drawing(image, [np.array([[511.7, 0.2], [600.0, -5.0]])], np.ones((320, 512), np.uint8))
    for fit in FITS:
        framing = drawing.framing(PAPER, fit)
        assert framing.same and drawing.framed(framing) is drawing and drawing.paths(9, framing)[0][0, 0] == 511.7


@pytest.mark.parametrize("size", [(128, 128), (40, 60), (256, 300), (100, 90)])
def test_a_track_may_start_on_any_pixel_that_the_frame_shows(size):
    """A start on the first or last pixel is held, with the displacements as they were."""
    framing = Framing.of(size, (64, 64))
    first, last = np.ceil(framing.box[:2]), np.floor(framing.box[2:]) - 1
    for start in (first, last, [first[0], last[1]], last + 0.95):
        track = np.array([start, np.add(start, [5, -3])])
        (framed,) = framing.tracks([track])
        assert ((framed[0] >= 0) & (framed[0] < 64)).all(), (start, framed)
        np.testing.assert_allclose(framed[1] - framed[0], np.array([5, -3]) * framing.scale)
    if min(framing.box[:2]) < max(framing.box[:2]):
        cut = first - 2 * (np.array(framing.box[:2]) > 0)
        with pytest.raises(UserError, match="track 0: starts at"):
            framing.tracks([cut[None]])


def test_a_crop_keeps_the_starts_where_one_can():
    """It moves off the middle, and shows the background where that is not enough; no start is lost."""
    size, edge = (1080, 1920), np.array([[1900.0, 500.0], [900.0, 500.0]])
    middle, moved = framing_of(size, PAPER), framing_of(size, PAPER, starts=edge[:1])
    assert moved.frame == middle.frame == (320, 512) and moved.box[0] > middle.box[0]
    at = moved.tracks([edge])[0]
    assert np.allclose(at, (edge + 0.5 - moved.box[:2]) * moved.scale - 0.5) and 0 <= at[0, 0] <= 511
    both = np.array([[10.0, 500.0], [1900.0, 500.0]])
    wide = framing_of(size, PAPER, starts=both)
    assert wide.frame == middle.frame and wide.scale[0] == wide.scale[1] < middle.scale[0]
    assert (wide.box[0] > 0 or wide.box[2] < 1920) and wide.box[1] < 0 and wide.box[3] > 1080
    found = wide.tracks([both[:1], both[1:]])
    assert np.allclose([track[0, 0] for track in found], [0, 511]) and np.allclose(wide.back(found[1]), both[1:])
    corners = [np.array([[x, y]]) for x in (1.0, 1918.0) for y in (1.0, 1078.0)]
    drawing = Drawing(np.zeros((*size, 3), np.uint8), corners)
    framing = drawing.framing(FrameArea(64 * 64))
    framed = drawing.framed(framing)
    assert np.allclose([track[0] for track in framed.tracks], framing.points(drawing.starts), atol=0.5)
    with pytest.raises(UserError, match="track 0: starts at .*expected x in 420..1499 and y in 0..1079; or fit `pad`"):
        drawing.framed(Framing.of(size, (64, 64)))


def test_sides_that_are_given():
    size = (480, 640)
    assert framing_of(size, PAPER, height=384).frame == (384, 512)
    assert framing_of(size, PAPER, width=128).frame == (128, 128)
    assert framing_of(size, PAPER, height=64, width=640).frame == (64, 640)
    for wrong in (dict(height=100), dict(width=0), dict(width=-64), dict(height=64.5), dict(height=2**20)):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*multiple of 64"):
            framing_of(size, PAPER, **wrong)
    with pytest.raises(UserError, match="fit is 'fill', expected one of crop, pad, stretch"):
        framing_of(size, PAPER, "fill")


def test_brushes_of_their_own_and_depths_are_not_mixed():
    """Each value stays one that was there, under the pixel whose centre it covers; a stack of masks likewise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (9, 15), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    framing = Framing.of((180, 300), (64, 128), "stretch")
    rows, columns = (np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in ((64, 180), (128, 300)))
    assert np.array_equal(framing.brush(labels), labels[rows][:, columns])
    stack = np.stack([labels == 1, labels > 1])
    drawing = Drawing(np.zeros((180, 300, 3), np.uint8), [np.array([[30.0, 30.0]])], stack).framed(framing)
    assert drawing.masks().dtype == bool and np.array_equal(drawing.masks(), stack[:, rows][:, :, columns])
    around = Framing.of((180, 300), (128, 128), "pad")
    assert not around.brush(np.ones((180, 300), np.uint8))[:20].any() and around.surface(labels + 1.0).min() >= 1


def test_a_lens_is_told_in_the_frame():
    """A pixel of the image and its place in the frame are one ray: fx, fy, cx, cy after the crop."""
    size, lens = (300, 401), np.array([[0.9, 1.2, 0.45, 0.55]] * 2)
    framing = Framing.of(size, (64, 64), starts=np.array([[390.0, 20.0]]))
    motion = SceneMotion(poses=(lens, np.tile(np.eye(3, 4), (2, 1, 1))), depth=np.ones(size))
    whole, framed = motion.camera(2, *size), motion.framed(framing).camera(2, 64, 64)
    pixel = np.array([350.25, 100.5])
    rays = []
    for camera, at in ((whole, pixel), (framed, framing.points(pixel))):
        rays.append(np.linalg.solve(camera.intrinsics[0], np.array([*at, 1.0])))
    assert np.allclose(*rays) and motion.framed(framing).depth.shape == (64, 64)
