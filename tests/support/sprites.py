"""The small embedded set of the `sprites` fixture."""

SPRITES = dict(clips=6, val_clips=3, frames=4, height=64, width=64)
