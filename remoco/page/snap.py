"""A brush that is fitted to the edges of the picture beneath it, with OpenCV's GrabCut (Rother et al., SIGGRAPH 2004).

The time is bounded: the part of the picture around the brush is scaled down to MOST_SIDE, and the rounds are counted
and timed.
"""

from __future__ import annotations

import math
import time
from typing import Any

import cv2
import numpy as np

from remoco.common.errors import UserError
from remoco.page import exchange

MOST_SIDE = 320  # pixels of what GrabCut sees
ROUNDS = 6  # at most; a round of 320 x 320 takes 0.03 to 0.4 s
SECONDS = (
    20.0  # no round begins later, for some patterns (stripes of one pixel) take 10 s a round. What ends in time is
)
# the same on any machine
REACH = 0.5  # how far from the brush an edge is looked for, as part of its longer side
HOLE = 0.05  # a hole of less than this part of the object is filled
CORE = 0.5  # what is deeper in the brush than this part of its deepest pixel is the object's for certain


def snapped(body: Any) -> dict[str, Any]:
    """The brush of a request, fitted to edges.

    Args:
        body: `image` and `runs` as in a drawing, and `value`, the brush that is fitted; 0 fits all that is brushed.

    Returns:
        `runs` of the new brush.

    Raises:
        UserError: nothing is brushed, or no edge is found.
    """
    image = exchange.picture_in(body)
    brush = exchange.brush_in(body, image)
    value = exchange.number(body.get("value"), "value", 0, 255, whole=True)
    return {"runs": exchange.runs_of(fitted(image, brush, value))}


def fitted(image: np.ndarray, brush: np.ndarray, value: int = 0) -> np.ndarray:
    """A brush that ends where the object under it does.

    Args:
        image: (H, W, 3) uint8.
        brush: (H, W) uint8, 0 where it is not brushed.
        value: which brush; the others keep their place. 0 is all, and the result has the most frequent value.

    Raises:
        UserError: nothing is brushed, or no edge is found.
    """
    own = brush == value if value else brush > 0
    if not own.any():
        raise UserError("the brush: nothing is painted yet; paint roughly over the object first")
    painted = value or int(np.bincount(brush[own]).argmax())
    others = (brush > 0) & ~own
    reach = max(3.0, REACH * max(own[_around(own, 0)].shape))
    part = _around(own, math.ceil(2 * reach))
    scale = min(1.0, MOST_SIDE / max(own[part].shape))
    seen, brushed, kept = (_scaled(each[part], scale) for each in (image, own, others))
    small = _object(seen, brushed, kept, reach * scale)
    height, width = own[part].shape
    found = cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    found &= ~others[part]
    if not found.any() or found.all():
        raise UserError("the brush: no edge was found around it; paint a part of the object only, or paint it by hand")
    result = np.where(own, 0, brush).astype(np.uint8)
    result[part][found] = painted
    return result


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of what is true, and a margin."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )


def _scaled(surface: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in surface.shape[:2])
    scaled = cv2.resize(surface.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA)
    return scaled > 0 if surface.dtype == bool else scaled


def _object(image: np.ndarray, own: np.ndarray, others: np.ndarray, reach: float) -> np.ndarray:
    """(H, W) bool: what GrabCut takes for the object under a brush, as far as it hangs together with the brush."""
    inside = cv2.distanceTransform(np.pad(own, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    outside = cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, 5) if not own.all() else np.zeros(own.shape)
    core = inside > CORE * inside.max()
    labels = np.where(own, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[(outside > reach) | others] = cv2.GC_BGD
    labels[core] = cv2.GC_FGD
    if not (labels == cv2.GC_BGD).any():  # the brush fills the picture, or nearly
        raise UserError("the brush: no edge was found around it; paint a part of the object only, or paint it by hand")
    cv2.setRNGSeed(0)  # of this thread; the same brush gives the same result
    back, front = np.zeros((1, 65)), np.zeros((1, 65))  # the two models
    mode, before, start = cv2.GC_INIT_WITH_MASK, None, time.monotonic()
    for _ in range(ROUNDS):
        cv2.grabCut(image, labels, (0, 0, 0, 0), back, front, 1, mode)
        if (before is not None and np.array_equal(before, labels)) or time.monotonic() - start > SECONDS:
            break
        mode, before = cv2.GC_EVAL, labels.copy()
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    _, parts = cv2.connectedComponents(found.astype(np.uint8))
    return _without_holes(found & np.isin(parts, parts[core])) & ~others


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """A mask with what it encloses, up to HOLE of its own area: eyes, and other spots of another colour."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(np.pad(~mask, 1, constant_values=True).astype(np.uint8))
    inner = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < HOLE * mask.sum())
    return mask | (np.isin(parts, inner)[1:-1, 1:-1] & ~mask)
