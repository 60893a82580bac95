"""Camera poses from text files in RealEstate10K's format."""

from __future__ import annotations

import numpy as np

from remoco.common.errors import UserError
from remoco.common.picture_files import Source, data_of, name_of

MAX_BYTES = 2**20  # of a file
LARGEST = 1e9  # of a number in it
NUMBERS = 19  # timestamp, fx, fy, cx, cy, two that are 0, and a 3 x 4 matrix from world to camera, row by row


def read_poses(source: Source, name: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cameras of a file: an address on the first line, if there is one, then one line of numbers for each frame.

    Returns:
        intrinsics (L, 4) fx, fy, cx, cy, in parts of the width and the height, and poses (L, 3, 4), world to camera.

    Raises:
        UserError: one line that names the file and the line.
    """
    path = name or name_of(source)
    data = data_of(source)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: has {len(data)} bytes, expected at most {MAX_BYTES // 2**20} MB of text")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected text in RealEstate10K's format, got binary data") from None
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or (number == 1 and len(words) == 1):
            continue
        try:
            row = np.array([float(word) for word in words if "_" not in word])
        except ValueError:
            row = np.empty(0)
        if len(row) != NUMBERS or len(words) != NUMBERS or not (np.abs(row) <= LARGEST).all():
            raise UserError(
                f"{path}: line {number}: expected {NUMBERS} numbers: time fx fy cx cy 0 0 and a 3 x 4 matrix"
            )
        matrix = row[7:].reshape(3, 4)
        if np.abs(matrix[:, :3] @ matrix[:, :3].T - np.eye(3)).max() > 0.01 or np.linalg.det(matrix[:, :3]) < 0:
            raise UserError(
                f"{path}: line {number}: expected a rotation in the first three columns of the 3 x 4 matrix"
            )
        if (row[1:3] <= 0).any():
            raise UserError(f"{path}: line {number}: expected focal lengths fx and fy above 0")
        rows.append(row)
    if len(rows) < 2:
        raise UserError(f"{path}: expected the poses of at least 2 frames, got {len(rows)}")
    table = np.stack(rows)
    return table[:, 1:5], table[:, 7:].reshape(-1, 3, 4)
