"""Light of HDR video (ITU-R BT.2100: PQ and HLG) to what an SDR display shows.

1. Signal to light of the display: the EOTF of PQ (BT.2100 table 4), or for HLG the inverse OETF and the OOTF of a
   display of 1000 cd/m2, gamma 1.2 (table 5).
2. 203 cd/m2, HDR reference white (BT.2408), is SDR white.
3. Primaries to BT.709, by way of XYZ (BT.2087); what lies outside is cut off.
4. To the signal of an SDR display by the inverse of its EOTF, gamma 2.4 (BT.1886).
5. Highlights roll off: identity below a knee and a smooth curve above it, as the EETF of BT.2390 section 5.4, by one
   factor for R, G and B so that hues stay. BT.2390's own curve would turn reference white into 231 of 255 for a
   mastering display of 1000 cd/m2; here the knee lies at 95 % of the signal, so white becomes 249.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

PQ, HLG = 16, 18
HDR = {PQ: "PQ", HLG: "HLG"}
"""H.273 transfer characteristics -> their names."""
WHITE_NITS = 203.0
HLG_NITS, HLG_GAMMA = 1000.0, 1.2
GAMMA = 2.4
KNEE = 0.95
STEPS = 1 << 14  # of the tables of EOTFs; 10 bits have 876

PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""H.273 colour primaries -> x, y of red, green and blue; the white of all is D65."""
D65 = (0.3127, 0.3290)


def sdr(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """(H, W, 3) float32 R'G'B' of BT.2100 in 0..1 -> R'G'B' of an SDR display with BT.709 primaries in 0..1.

    Args:
        signal: what lies outside of 0..1 is cut off.
        transfer: PQ or HLG.
        primaries: colour primaries of H.273; BT.2020's where they are none of PRIMARIES.
    """
    index = (np.clip(signal, 0, 1) * (STEPS - 1) + 0.5).astype(np.int32)
    primaries = primaries if primaries in PRIMARIES else 9
    light = _table(transfer)[index]
    if transfer == HLG:
        luminance = cv2.transform(light, _xyz(primaries)[1:2])[..., None]
        light *= luminance ** np.float32(HLG_GAMMA - 1) * np.float32(HLG_NITS / WHITE_NITS)
    shown = np.maximum(cv2.transform(light, _to_bt709(primaries)), 0) ** np.float32(1 / GAMMA)
    highest = np.maximum(
        np.maximum(shown[..., :1], shown[..., 1:2]), shown[..., 2:]
    )  # max(axis=-1) takes 8 times as long
    return shown * (roll_off(highest) / np.maximum(highest, KNEE))


def roll_off(signal: np.ndarray) -> np.ndarray:
    """max(signal, KNEE) up to 1 for signals without an end; with a slope of 1 at the knee, strictly growing."""
    room = 1 - KNEE
    return 1 - room**2 / (room + np.maximum(signal - KNEE, 0))


def pq_nits(signal: np.ndarray) -> np.ndarray:
    """BT.2100 table 4: signal 0..1 of PQ -> cd/m2."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.asarray(signal, dtype=np.float64) ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """BT.2100 table 5, the inverse OETF: signal 0..1 of HLG -> light of the scene, 0..1."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    signal = np.asarray(signal, dtype=np.float64)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


@cache
def _table(transfer: int) -> np.ndarray:
    signal = np.linspace(0, 1, STEPS)
    return (pq_nits(signal) / WHITE_NITS if transfer == PQ else hlg_scene(signal)).astype(np.float32)


@cache
def _xyz(primaries: int) -> np.ndarray:
    """(3, 3): linear R, G, B to X, Y, Z (SMPTE RP 177); the second row is the weights of luminance."""

    def column(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    parts = np.stack([column(*xy) for xy in PRIMARIES[primaries]], axis=1)
    return parts * np.linalg.solve(parts, column(*D65))


@cache
def _to_bt709(primaries: int) -> np.ndarray:
    return np.linalg.inv(_xyz(1)) @ _xyz(primaries)
