"""Synthetic clips with exact tracks."""

from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import Scene, random_scene, render, tracks
from datamodules.scenes.varied import varied_scene

__all__ = ["Scene", "plain_scene", "random_scene", "render", "tracks", "varied_scene"]
