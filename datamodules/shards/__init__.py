"""Clips on disk: the format, its codecs, where shards are read from, and the one writer."""

from datamodules.shards.format import (
    CAPTION,
    FLOW,
    LATENT,
    MASKS,
    MEMBERS,
    META,
    VIDEO,
    Shards,
    sanitised,
    sidecar,
    unpack,
    write_index,
)
from datamodules.shards.index import FORMAT, INDEX, ClipShape, read_index
from datamodules.shards.patterns import expand

__all__ = [
    "CAPTION",
    "FLOW",
    "FORMAT",
    "INDEX",
    "LATENT",
    "MASKS",
    "MEMBERS",
    "META",
    "VIDEO",
    "ClipShape",
    "Shards",
    "expand",
    "read_index",
    "sanitised",
    "sidecar",
    "unpack",
    "write_index",
]
