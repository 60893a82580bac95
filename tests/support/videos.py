"""Videos for the tests, made on the spot."""

from fractions import Fraction

import av
import numpy as np

from datamodules.scene import random_scene, render


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
