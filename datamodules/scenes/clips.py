"""The clips of a set of sprites, each a function of the set's settings and its number."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from datamodules.made_once import MadeOnce
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import Scene, random_scene, render, tracks
from datamodules.scenes.varied import varied_scene
from datamodules.shards import MEMBERS, ClipShape, samples
from datamodules.shards.cached import Layout

VERSION = 4
CLIPS_PER_SHARD = 64
SceneKind = Literal["textured", "plain", "varied"]
_SIZES = struct.Struct(f"<{len(MEMBERS)}Q")  # bytes of each member


class MadeClips:
    """A set of sprites that is read as `Shards` are; a clip is made when it is first read.

    Its members, their order and their numbers are those of the shards that `SpritesDataModule` writes where it has a
    `root`, so batches of the two have the same bits.

    Args:
        shape: Shape of the clips.
        kind: Kind of scene.
        seed: Seed of the set.
        count: Number of clips.
    """

    filled: str | None = None
    latent_hashes: dict[str, str] | None = None
    layout: Layout | None = None
    files: dict[str, str] = {}
    digest: str | None = None  # its settings say all

    def __init__(self, shape: ClipShape, kind: SceneKind, seed: Sequence[int], count: int) -> None:
        self.shape, self.kind, self.seed = shape, kind, list(seed)
        self.pattern = "sprites"
        self.counts = np.diff([*range(0, count, CLIPS_PER_SHARD), count])
        self.made = MadeOnce(count)

    def __len__(self) -> int:
        return self.made.count

    def key(self, shard: int, clip: int) -> str:
        """Key of a clip."""
        return key_of(CLIPS_PER_SHARD * shard + clip)

    def called(self, shard: int, clip: int) -> str:
        """What errors call a clip."""
        return self.key(shard, clip)

    def read(self, shard: int, clip: int, kinds: Sequence[str]) -> dict[str, bytes]:
        """The members of a clip."""
        number = CLIPS_PER_SHARD * shard + clip
        data = self.made.get(number, lambda: _packed(sprite(self.shape, [*self.seed, number], self.kind)))
        ends = np.cumsum([_SIZES.size, *_SIZES.unpack_from(data)]).tolist()
        return {kind: data[begin:end] for kind, begin, end in zip(MEMBERS, ends, ends[1:]) if kind in kinds}

    def ahead(self, clips: Iterable[tuple[int, int]], kinds: Sequence[str]) -> None:
        """Nothing: there is no store to wait for."""


def _packed(members: dict[str, bytes]) -> bytes:
    parts = [members[kind] for kind in MEMBERS]
    return b"".join([_SIZES.pack(*map(len, parts)), *parts])


def key_of(number: int) -> str:
    """Key of a set's clip."""
    return f"sprite-{number:06d}"


def sprite(shape: ClipShape, seed: list[int], kind: SceneKind = "textured") -> dict[str, bytes]:
    """The members of one synthetic clip."""
    scene = scene_of(shape, seed, kind)
    flow, visibility = tracks(scene)
    source = {"name": "sprites", "seed": seed, "start": 0.0}
    tracker = {"name": "exact", "version": str(VERSION)}
    return samples.encode(render(scene), flow, visibility, shape.fps, source, tracker, scene.caption)


def scene_of(shape: ClipShape, seed: list[int], kind: SceneKind) -> Scene:
    """The scene of a clip; `seed` ends with the clip's number."""
    size = shape.frames, shape.height, shape.width
    if kind == "textured":
        return random_scene(seed, *size)
    draw_scene = plain_scene if kind == "plain" else varied_scene
    return draw_scene([*seed[:-1], seed[-1] // 2], [*seed, 1], *size)
