"""Small shards whose bytes a test breaks."""

import json
import zlib

import numpy as np
import safetensors.numpy

from datamodules.shards import INDEX, LATENT, MEMBERS, ClipShape, sidecar, write_index
from datamodules.shards.writer import ShardWriter
from datamodules.webvid import WebVidDataModule

SHAPE = ClipShape(frames=3, height=16, width=24, fps=8.0)
CLIPS = 6
KINDS = (*MEMBERS, LATENT)


def latents(seed=0, **changes):
    rng = np.random.default_rng(seed)
    size = (SHAPE.frames, 4, 2, 3)
    arrays = {
        "latent_mean": rng.normal(size=size).astype(np.float16),
        "latent_std": rng.random(size).astype(np.float16),
        "image_embedding": rng.normal(size=(1, 8)).astype(np.float16),
    }
    return safetensors.numpy.save({**arrays, **changes})


def write(folder, clips, hashes=None, per_shard=CLIPS):
    folder.mkdir(exist_ok=True)
    entries = []
    for first in range(0, len(clips), per_shard):
        with ShardWriter(folder / f"{first:05d}-000.tar") as writer:
            for number, members in enumerate(clips[first : first + per_shard], start=first):
                writer.write(f"clip-{number}", members)
        entries.append(writer.entry)
    write_index(folder, SHAPE, entries, hashes)
    return folder


def module(folder, **arguments):
    size = {"frames": 3, "height": 16, "width": 24}
    return WebVidDataModule(str(folder), **{"batch_size": 2, "num_workers": 0, **size, **arguments})


def epoch(data):
    """(key, replaced) of one epoch's samples."""
    return [row for batch in data.train_dataloader() for row in zip(batch["key"], batch["replaced"].tolist())]


HASHES = {"vae": "a" * 64, "image_encoder": "b" * 64}


def rewrite(shard, change, entry=None):
    """Change a sidecar, or a shard's line in the index, so that the checksums agree and the content does not."""
    path, index_path = sidecar(shard), shard.parent / INDEX
    index = json.loads(path.read_bytes())
    change(index)
    path.write_text(json.dumps(index))
    whole = json.loads(index_path.read_bytes())
    whole["shards"][0].update({"index_crc32": zlib.crc32(path.read_bytes()), **(entry or {})})
    index_path.write_text(json.dumps(whole))
