"""The moving picture of README: what was drawn on the first frame, beside the clip that came of it.

`make demo && python docs/moving_picture.py runs/demo docs/demo.webp`; any folder with `inputs/` and `clip.mp4` will do.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.drawings import read_drawing
from remoco.common.videos.files import read_video

HEIGHT, GAP = 288, 8  # pixels
HOLD = 900  # ms that the last frame stays
BRUSH, STROKE = (90, 230, 120), (255, 255, 255)


def scaled(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (HEIGHT, w, 3)."""
    width = round(picture.shape[1] * HEIGHT / picture.shape[0])
    shrink = picture.shape[0] > HEIGHT
    return cv2.resize(picture, (width, HEIGHT), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def drawn(folder: Path, frames: int) -> np.ndarray:
    """The first frame (HEIGHT, w, 3) with the brush's outline and the strokes."""
    drawing = read_drawing(folder)
    canvas = scaled(drawing.image)
    factor = HEIGHT / drawing.image.shape[0]
    if drawing.brush is not None:
        mask = cv2.resize((drawing.brush > 0).astype(np.float32), canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        outlines, _ = cv2.findContours((mask > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, BRUSH, 2, cv2.LINE_AA)
    for path in drawing.paths(8 * frames):
        points = ((path + 0.5) * factor).round().astype(int)
        ahead = points[np.linalg.norm(points - points[-1], axis=1) >= 12]
        for colour, width in (((0, 0, 0), 6), (STROKE, 3)):
            cv2.polylines(canvas, [points], False, colour, width, cv2.LINE_AA)
            cv2.circle(canvas, points[0].tolist(), width + 1, colour, -1, cv2.LINE_AA)
            if len(ahead):
                cv2.arrowedLine(
                    canvas, ahead[-1].tolist(), points[-1].tolist(), colour, width, cv2.LINE_AA, tipLength=1
                )
    return canvas


def main(folder: Path, out: Path) -> None:
    """Write OUT, a WebP or GIF by its suffix, of the demo's FOLDER."""
    pictures, fps = read_video(folder / "clip.mp4")
    left = drawn(folder / "inputs", len(pictures))
    gap = np.full((HEIGHT, GAP, 3), 255, np.uint8)
    frames = [Image.fromarray(np.hstack([left, gap, scaled(picture)])) for picture in pictures]
    times = [round(1000 / fps)] * (len(frames) - 1) + [HOLD]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80, method=6)
    print(f"wrote {out}, {out.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/moving_picture.py DEMO_FOLDER OUT.webp")
    main(*map(Path, sys.argv[1:]))
