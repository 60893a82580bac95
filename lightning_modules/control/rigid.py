"""What a sparse control says of each pixel of the first frame: layers, each with the motion that its tracks agree on.

Points are complex numbers x + iy, in pixels whose centres are integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

TOLERANCE = 1.0  # px in every frame: how far a track may be from the motion it is taken to share
STILL = 1.0  # px, mean over the frames: what the motion mask calls still
MOST_MOTIONS = 8  # similarities of a clip; the tracks that fit none keep their own displacement
PROJECTED, WIDER, MOST_FITTED = 64, 1.5, 2000  # tracks of a homography: the fewest, how many times more, the most used
BLOCK, MOST_SEEDS = 8, 64  # pixels of a side from which a motion is guessed, and how many guesses are compared


@dataclass(frozen=True)
class Similarity:
    """A turn, scale and shift for each frame: p goes to `p + turn * (p - origin) + shift`."""

    origin: complex
    turn: np.ndarray  # (L,) complex; 0 is a pure shift
    shift: np.ndarray  # (L,) complex

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """(N,) points of frame 1 -> (L, N) complex."""
        return self.turn[:, None] * (points - self.origin) + self.shift[:, None]

    def source(self, frame: int, points: np.ndarray) -> np.ndarray:
        """Where points of a frame were in frame 1; whole numbers stay exact under a whole shift."""
        return self.origin + (points - self.origin - self.shift[frame]) / (1 + self.turn[frame])

    def moves(self) -> np.ndarray:
        """(L,) bool: in which frames a point is elsewhere than in the first."""
        return np.logical_or(self.turn != 0, self.shift != 0)


@dataclass(frozen=True)
class Projection:
    """What a turning camera does to all of a picture: a homography for each frame, (L, 3, 3)."""

    matrices: np.ndarray

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """(N,) points of frame 1 -> (L, N) complex."""
        return np.stack([_mapped(matrix, points) for matrix in self.matrices]) - points

    def source(self, frame: int, points: np.ndarray) -> np.ndarray:
        """Where points of a frame were in frame 1."""
        return _mapped(np.linalg.inv(self.matrices[frame]), points)

    def moves(self) -> np.ndarray:
        """(L,) bool: in which frames a point is elsewhere than in the first."""
        return np.asarray(np.abs(self.matrices - np.eye(3)).max((1, 2)) > 1e-9)


Shared = Similarity | Projection


def _mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y, depth = np.einsum("ij,j...->i...", matrix, np.stack([points.real, points.imag, np.ones(points.shape)]))
    depth = np.where(np.abs(depth) < 1e-6, 1e-6, depth)  # on the horizon of a frame
    return (x + 1j * y) / depth


@dataclass(frozen=True)
class Layer:
    """Pixels of the first frame that move together.

    Attributes:
        pixels: (H, W) bool.
        motion: What they share, or None where each has its own displacement.
        flow: (L, N) complex displacement of the N pixels in raster order, without such.
    """

    pixels: np.ndarray
    motion: Shared | None
    flow: np.ndarray | None = None

    def moves(self) -> np.ndarray:
        """(L,) bool: in which frames it is elsewhere than in the first."""
        if self.motion is None:
            return np.asarray(np.asarray(self.flow).any(1))
        return self.motion.moves()


def fit(points: np.ndarray, flow: np.ndarray) -> Similarity:
    """The least-squares similarity of tracks; a common displacement comes back to the bit.

    Args:
        points: (N,) complex.
        flow: (L, N) complex displacement from frame 1.
    """
    mean, shift = points.mean(), flow.mean(1)
    around = points - mean
    size = (np.abs(around) ** 2).sum()
    turn = (flow - shift[:, None]) @ around.conj() / size if size > 0 else np.zeros_like(shift)
    turn = np.where(np.abs(1 + turn) < 1e-3, 0, turn)  # a layer that shrinks to a point has no inverse
    origin = complex(np.round(mean.real), np.round(mean.imag))
    return Similarity(origin, turn, shift + turn * (origin - mean))


def fit_projection(points: np.ndarray, flow: np.ndarray) -> Projection:
    """The least-squares homographies of at least four tracks; arguments as `fit`'s."""
    some = np.linspace(0, len(points) - 1, min(len(points), MOST_FITTED)).astype(int)
    points, flow = points[some], flow[:, some]
    middle, size = points.mean(), max(float(np.abs(points - points.mean()).mean()), 1.0)
    to = np.array([[1 / size, 0, -middle.real / size], [0, 1 / size, -middle.imag / size], [0, 0, 1]])
    start = (points - middle) / size
    ones, none = np.ones(len(start)), np.zeros((len(start), 3))
    rows = np.stack([start.real, start.imag, ones], 1)
    matrices = []
    for way in flow:
        end = start + way / size
        left = np.block([[rows, none], [none, rows]])
        right = -np.concatenate([end.real, end.imag])[:, None] * np.tile(rows[:, :2], (2, 1))
        found = np.linalg.lstsq(np.hstack([left, right]), np.concatenate([end.real, end.imag]), rcond=None)[0]
        matrix = np.linalg.inv(to) @ np.append(found, 1).reshape(3, 3) @ to
        matrices.append(matrix / matrix[2, 2] if way.any() else np.eye(3))
    return Projection(np.stack(matrices))


def layers_of(flow: np.ndarray, moving: np.ndarray) -> list[Layer]:
    """Layers of a clip, the lowest first: it has most of the frame's border; of the others the smaller is in front.

    Tracks that agree on a similarity are one motion. What the mask calls moving goes with its nearest track, in the
    same connected part of the mask; a part without a track stays. What the mask calls still stays, or goes with a
    motion that hardly moves it.

    Args:
        flow: (L, H, W) complex displacement from frame 1, zero where no track is given.
        moving: (H, W) bool motion mask.
    """
    tracked = (flow != 0).any(0)
    owner, motions, own = _owners(flow, moving, tracked)
    grid = _grid(owner.shape)
    for index, motion in enumerate(motions[1:], 1):
        near = owner == 0
        near[near] = np.abs(motion.displacement(grid[near])).mean(0) <= STILL
        owner[near & ~moving] = index
    numbers = [number for number in np.unique(owner) if number >= 0]
    border = np.concatenate([owner[0], owner[-1], owner[:, 0], owner[:, -1]])
    lowest = max(numbers, key=lambda n: ((border == n).sum(), (owner == n).sum()), default=0)
    above = sorted((n for n in np.unique(owner) if n != lowest), key=lambda n: -int((owner == n).sum()))
    found = [Layer(owner == lowest, motions[lowest])]
    for number in above:
        pixels = owner == number
        found.append(Layer(pixels, None, own[:, pixels]) if number < 0 else Layer(pixels, motions[number]))
    return found


def _owners(flow: np.ndarray, moving: np.ndarray, tracked: np.ndarray) -> tuple[np.ndarray, list[Shared], np.ndarray]:
    """(H, W) index of each pixel's motion, -1 for its own; the motions, first the one that stays; and (L, H, W) the
    displacement that each pixel takes over from its nearest track.
    """
    frames = len(flow)
    motions: list[Shared] = [Similarity(0j, np.zeros(frames, complex), np.zeros(frames, complex))]
    owner, own = np.zeros(tracked.shape, int), flow
    if not tracked.any():
        return owner, motions, own
    found, labels = _motions(_grid(tracked.shape)[tracked], flow[:, tracked])
    motions += found
    owner[tracked] = np.where(labels < 0, -1, labels + 1)
    parts, count = ndimage.label(moving | tracked)
    nearest = ndimage.distance_transform_edt(~tracked, return_distances=False, return_indices=True)
    wrong = parts != parts[tuple(nearest)]
    for part in np.unique(parts[wrong & (parts > 0)]):  # whose nearest track belongs to another part
        inside = parts == part
        if (inside & tracked).any():
            there = ndimage.distance_transform_edt(~(inside & tracked), return_distances=False, return_indices=True)
            nearest[:, inside] = there[:, inside]
            wrong[inside] = False
    taken = moving & ~tracked & ~wrong
    source = nearest[0][taken], nearest[1][taken]
    owner[taken] = owner[source]
    if (owner < 0).any():
        own = flow.copy()
        own[:, taken] = flow[:, source[0], source[1]]
    return owner, motions, own


def _motions(points: np.ndarray, flow: np.ndarray) -> tuple[list[Shared], np.ndarray]:
    """The motions that tracks agree on, the most common first, and (N,) the index of each track's, -1 for none."""
    labels, motions = np.full(len(points), -1), list[Shared]()
    while len(motions) < MOST_MOTIONS and (labels < 0).any():
        rest = np.flatnonzero(labels < 0)
        agreed = _agreed(points[rest], flow[:, rest])
        if len(agreed) < 2 and motions:
            break
        motion, agreed = _widened(points[rest], flow[:, rest], agreed)
        labels[rest[agreed]] = len(motions)
        motions.append(motion)
    return motions, labels


def _widened(points: np.ndarray, flow: np.ndarray, agreed: np.ndarray) -> tuple[Shared, np.ndarray]:
    """The motion of tracks that share a similarity, and whose it is: a homography's where many more share that."""
    similar = fit(points[agreed], flow[:, agreed])
    most = agreed
    while PROJECTED <= len(most) < len(points):
        projection = fit_projection(points[most], flow[:, most])
        more = np.flatnonzero(_fits(projection, points, flow))
        if len(more) <= len(most):
            break
        most = more
    if len(most) < WIDER * len(agreed):
        return similar, agreed
    return fit_projection(points[most], flow[:, most]), most


def _agreed(points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Indices of the largest set of tracks found that share a similarity."""
    whole = fit(points, flow)
    if _fits(whole, points, flow).all():
        return np.arange(len(points))
    blocks = (points.imag // BLOCK).astype(int) * 100_000 + (points.real // BLOCK).astype(int)
    _, first, block, sizes = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    seeds = np.argsort(-sizes, kind="stable")
    seeds = seeds[np.linspace(0, len(seeds) - 1, min(len(seeds), MOST_SEEDS)).astype(int)]
    guesses = [fit(points[block == seed], flow[:, block == seed]) for seed in seeds]
    votes = [(sizes * _fits(guess, points[first], flow[:, first])).sum() for guess in guesses]
    agreed = np.flatnonzero(_fits(guesses[int(np.argmax(votes))], points, flow))
    if len(agreed):  # once more from all that agree: a block alone says little of a turn
        better = np.flatnonzero(_fits(fit(points[agreed], flow[:, agreed]), points, flow))
        agreed = better if len(better) > len(agreed) else agreed
    return agreed if len(agreed) else np.arange(1)


def _fits(motion: Shared, points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    return (np.abs(motion.displacement(points) - flow) <= TOLERANCE).all(0)


def _grid(size: tuple[int, ...]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return x + 1j * y
