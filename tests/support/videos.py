"""Videos for the tests, made on the spot."""

import struct
from fractions import Fraction

import av
import numpy as np

from datamodules.scenes.scene import random_scene, render


def write_video(path, frames=24, fps=12, height=48, width=64, seed=0, times=None, video=None):
    """A moving scene, or `video` (L, 3, H, W), as H.264; `times` are frame times in milliseconds, for a variable frame
    rate. Returns the frames."""
    video = render(random_scene([seed], frames, height, width)) if video is None else video
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "8"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[2:], "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image.transpose(1, 2, 0)), format="rgb24")
            frame.pts = index if times is None else times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return video


BITS = 10


def numbered(number, height=48, width=80):
    """(height, width, 3) uint8: upright bars that are the bits of a number, the lowest left, over a grey ground."""
    image = np.full((height, width, 3), 96, np.uint8)
    image[: height * 2 // 3] = np.repeat([235 if number >> bit & 1 else 16 for bit in range(BITS)], width // BITS)[
        None, :, None
    ]
    return image


def number_of(image):
    """The number of a picture that `numbered` made, (H, W, 3), whatever its size."""
    height, width = image.shape[:2]
    row = image[height // 8 : height // 2].mean((0, 2))
    return sum((row[int((bit + 0.5) * width / BITS)] > 125) << bit for bit in range(BITS))


def write_pictures(
    path,
    pictures,
    rate=25,
    codec="libx264",
    pix_fmt="yuv420p",
    times=None,
    sound=0.0,
    setup=None,
    movflags="",
    **options,
):
    """Pictures (H, W, 3) uint8 or av.VideoFrame as a video.

    Args:
        path: its suffix names the container.
        pictures: in order.
        rate: per second.
        codec: of FFmpeg.
        pix_fmt: of the stored pictures.
        times: of the pictures in milliseconds, for a variable rate.
        sound: seconds of silence beside them.
        movflags: of an mp4.
        setup: is called with the stream before anything is written.
        options: of the codec.
    """
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "6"} | options)
        first = pictures[0]
        stream.height, stream.width = (
            (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
        )
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if setup is not None:
            setup(stream)
        beside = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000) if sound else None
        for index, picture in enumerate(pictures):
            frame = picture
            if not isinstance(picture, av.VideoFrame):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = index if times is None else times[index]
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if beside is not None:
            for block in range(int(sound * 50)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
                silence.sample_rate, silence.pts = 48000, block * 960
                container.mux(beside.encode(silence))
            container.mux(beside.encode())


def set_display_matrix(path, a, b, c, d):
    """Write a display matrix into an mp4 of one track: a picture's point (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # of version 0 (ISO/IEC 14496-12, 8.3.2)
    numbers = [a, b, 0, c, d, 0, 0, 0]
    struct.pack_into(">8i", data, place, *(round(number * 65536) for number in numbers))
    path.write_bytes(data)


def damage(path, begin, end, count=4, seed=0):
    """Write wrong bytes at a few places of an mp4's samples, from one part of them to another, both in 0..1."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat")
    (size,) = struct.unpack_from(">I", data, at - 4)
    rng = np.random.default_rng(seed)
    for place in np.linspace(at + size * begin, at + size * end, count).astype(int):
        data[place : place + 6] = rng.bytes(6)
    path.write_bytes(data)


FIELDS = {"flags": "+ildct+ilme"}
"""Options of the encoder that mark pictures as interlaced."""


def woven(count, height=64, width=96, moves=2):
    """A bar that moves by `moves` px a field, the lower field first, as x264 marks it unless told otherwise."""
    pictures = []
    for index in range(count):
        image = np.full((height, width, 3), 40, np.uint8)
        for parity in (0, 1):
            left = 10 + (2 * index + 1 - parity) * moves
            image[parity::2, left : left + 16] = 220
        pictures.append(image)
    return pictures
