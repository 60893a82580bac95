"""What is called otherwise in another checkout: whoever renames something adds a line here.

A function that moves gets its new place at the end of its list in NAMES.
"""

from pathlib import Path

PREFIXES: dict[str, str] = {"svd.": "base.", "injection.": "injections.0."}
"""Old -> new beginning of a parameter's name, a key of a checkpoint, a tag of the log or a metric's name."""

KEYS: dict[str, str] = {
    "model.init_args.sample_steps": "model.init_args.sampling.steps",
    "model.init_args.learning_rate": "optimizer.init_args.lr",
    "model.init_args.init_seed": "model.init_args.base.init_args.init_seed",
}
"""Old -> new key of a configuration, as a command line sets it: `model.init_args.sample_steps`."""

CONFIGS: dict[str, list[tuple[str, ...]]] = {
    "quickstart": [("configs/quickstart.yaml",)],
    "sprites_lora": [("configs/sprites_lora.yaml",)],
}
"""Run -> its configuration files, oldest first; the last list whose files are all in a checkout is used there."""

NAMES: dict[str, list[str]] = {
    "opened": ["remoco.page.exchange.opened"],
    "inputs_of": ["remoco.page.exchange.inputs_of", "remoco.page.exchange.parsed"],
    "moving": ["remoco.page.backdrops.moving"],
    "SIZES": ["remoco.page.exchange.SIZES", "remoco.page.form.SIZES"],
    "fitted": ["remoco.page.backdrops.fitted"],
    "FrameArea": ["datamodules.drawings.framing.FrameArea"],
    "RegionWise": ["conditions.RegionWise"],
    "Drawing.image": ["image"],
    "Drawing.paths": ["paths"],
    "Drawing.masks": ["masks"],
    "SceneMotion.control": ["control"],
}
"""What `probe` calls -> where it is, or the attribute that it is, oldest first; the last that is there is called."""

FRAMING = "datamodules/drawings/framing.py"
EVALUATION = "callbacks/evaluation.py"
INTENDED: dict[str, tuple[str, str]] = (
    {
        f"drawing, {name}: {stage}": (FRAMING, "a picture is cropped to the frame's shape, and no longer squeezed")
        for name in ("odd size", "camera, odd size")
        for stage in ("framed", "control tensor", "motion bucket", "shown motion")
    }
    | {
        f"drawing, {name}: parsed": (FRAMING, "a track that starts in the last half pixel stays where it was drawn")
        for name in ("odd size", "camera, odd size")
    }
    | {
        f"{name}: samples": (
            EVALUATION,
            "samples are made in validation's batch, which gives other last bits than one of one",
        )
        for name in ("quickstart", "sprites_lora")
    }
)
"""What is compared (first column of the table) -> the file that came with a change on purpose, and what that changed.

Between a checkout without the file and one with it the difference is shown and not counted.
"""


def renamed(path: tuple[str, ...]) -> tuple[str, ...]:
    """The newest names of the parts of a path; those that are new already stay."""
    parts = []
    for part in path:
        for old, new in PREFIXES.items():
            if part.startswith(old) and not part.startswith(new):
                part = new + part.removeprefix(old)
        parts.append(part)
    return tuple(parts)


def spelled(key: str, configs: list[dict]) -> str:
    """A key as a checkout spells it: the newest of its names that one of its configurations has."""
    names = [key]
    while names[-1] in KEYS:
        names.append(KEYS[names[-1]])
    return next((name for name in reversed(names) if any(_has(config, name) for config in configs)), key)


def intended(old: Path, new: Path) -> dict[str, str]:
    """What differs on purpose between two checkouts -> why."""
    return {what: why for what, (file, why) in INTENDED.items() if (new / file).exists() and not (old / file).exists()}


def _has(config: dict, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True
