"""Clips in the layout of MotionPro's released data, written from the arrays that tests know."""

import io
import tarfile

import numpy as np
from PIL import Image

from datamodules.scenes.scene import random_scene, render
from tests.support.videos import write_video

FRAMES, HEIGHT, WIDTH = 4, 64, 96


def tracks(seed, frames=FRAMES, height=HEIGHT, width=WIDTH):
    """Flow (L - 1, H, W, 2) float32, and visibility (L - 1, H, W) bool with a hidden rectangle in each frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    time = np.arange(1, frames)[:, None, None]
    flow = np.stack([time * (1.3 + x / width + rng.normal(0, 0.3, x.shape)), time * np.sin(y / 9 + rng.random())], -1)
    seen = np.ones((frames - 1, height, width), bool)
    for index in range(frames - 1):
        seen[index, 16 * index : 16 * index + 16, 24:56] = False
    return flow.astype(np.float32), seen


def clip(folder, seed, frames=FRAMES, height=HEIGHT, width=WIDTH, fps=8):
    """A video file in a folder, which is made; its path and its frames."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "video.mp4"
    video = render(random_scene([seed], frames, height, width))
    write_video(path, fps=fps, video=video)
    return path, video


def npy(array, **options):
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def jpg(seen):
    """Masks (N, H, W) or (H, W) bool as a JPEG, side by side."""
    strip = np.concatenate(list(seen), axis=1) if seen.ndim == 3 else seen
    file = io.BytesIO()
    Image.fromarray(strip.astype(np.uint8) * 255).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_folder(folder, seed, **shape):
    """A folder of one clip; its flow and visibility."""
    clip(folder, seed, **shape)
    flow, seen = tracks(seed, **{name: value for name, value in shape.items() if name != "fps"})
    for number, (each, mask) in enumerate(zip(flow, seen), start=1):
        (folder / f"flow_{number:02d}.npy").write_bytes(npy(each.astype(np.float16)))
        (folder / f"visible_mask_{number:02d}.jpg").write_bytes(jpg(mask))
    return flow.astype(np.float16).astype(np.float32), seen


def write_tar(path, clips):
    """A tar of members: name -> bytes."""
    with tarfile.open(path, "w") as tar:
        for name, data in clips.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
