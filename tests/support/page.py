"""What a browser would send to the page."""

import base64
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from PIL import Image

from lightning_modules.bases import Sprites
from lightning_modules.config import Sampling
from lightning_modules.pipeline_call import base_inputs
from lightning_modules.process import EDM


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def sent(**files):
    names = {name.replace("__", "."): data for name, data in files.items()}
    return {"files": [{"name": n, "data": base64.b64encode(d).decode()} for n, d in names.items()]}


def bomb(width, height):
    """A PNG of this size of a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def told(lines):
    """The data of server-sent events, as HTML's standard reads a stream of lines."""
    data = []
    for line in lines:
        line = line.rstrip(b"\r\n")
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line and data:
            yield json.loads(b"\n".join(data))
            data = []


def unloaded(sampling=None, base=None):
    """What stands for a pipeline where no more than its settings is asked."""
    sampling = sampling or Sampling(4, 80.0, (1.0, 2.5), {"motion_bucket_id": "drawing"})
    sampling = sampling.over(EDM())
    module = SimpleNamespace(sampling=sampling, base=base or Sprites("micro"))
    trained = {"num_frames": 8, "height": 64, "width": 64}
    usual = base_inputs(module.base.inputs(), sampling.inputs, {})
    return SimpleNamespace(module=module, sampling=trained, usual_inputs=lambda: usual, trained_size=(64, 64))


IMAGE = png(np.zeros((8, 9, 3), np.uint8))
ROUND = json.dumps({"traj_key_points": [[[1, 1], [2, 2]]]}).encode()


@contextmanager
def served(tmp_path_factory, *words):
    """`remoco page WORDS` on a free port: (port, the file of its connections elsewhere)."""
    outside = tmp_path_factory.mktemp("server") / "outside.txt"
    command = [sys.executable, "-m", "tests.page.recorded", str(outside), "page", "--port", "0", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield int(line.rpartition(":")[2]), outside
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait()
