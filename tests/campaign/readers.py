"""What the program does with a stranger's file, each call in a process that has done the imports; see `child`."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import metrics  # noqa: F401
from callbacks.strips import panel_factor
from conditions import RegionWise, control_video
from datamodules.drawings import FrameArea
from datamodules.drawings.panels import enlarged
from lightning_modules import MotionControlModule, networks  # noqa: F401
from lightning_modules.bases import Sprites
from lightning_modules.config import Control, Sampling
from lightning_modules.pipeline import MotionControlPipeline
from remoco import generation, report, score, study, sweep, training  # noqa: F401
from remoco.cli import main as remoco
from remoco.common.errors import UserError
from remoco.common.json_files import parse_json
from remoco.page import exchange
from remoco.page.jobs import Studio
from remoco.page.makers import Checkpoint, preview
from remoco.sweep.plan import points, read_plan, record, trials_of


class Unrun(training.CLI):
    """Builds all that a run needs, and does not start it."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Not here."""


def configured(words: list[str]) -> None:
    """As far as a command gets with a configuration before it works: a sweep, metrics to score with, or a fit."""
    try:
        if words[0] == "sweep":
            plan = read_plan(words[1], [], None)
            record(plan)
            for point in points(plan)[:2]:
                trial = trials_of(plan, point, Path("out"))[0]
                if problem := training.refused(["fit", *trial.fit]):
                    raise UserError(problem)
        elif words[0] == "metrics":
            score.read_metrics(words[1])
        else:
            training.CLI = Unrun
            training.main(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def stub() -> Any:
    """What stands for a pipeline where only its settings are asked."""
    module = SimpleNamespace(
        condition=RegionWise(8, 0.0),
        sampling=Sampling(1, 80.0, (1.0, 1.0)),
        base=Sprites("micro"),
    )
    usual = {"fps": 8.0, "motion_bucket_id": "drawing", "noise_aug_strength": 0.02}
    sampling = {"num_frames": 4, "height": 64, "width": 64}
    sizes = {"trained_size": (64, 64), "grid": FrameArea(64 * 64)}
    return SimpleNamespace(module=module, sampling=sampling, usual_inputs=lambda: usual, **sizes)


def drawn(words: list[str]) -> None:
    """`remoco generate`, up to the control and its picture."""

    def panels_of(
        pipe: Any, inputs: Any, motion: Any, seed: int, options: dict[str, Any], told: Any
    ) -> dict[str, np.ndarray]:
        control, bucket = motion.control(pipe.module.condition, inputs, options["num_frames"], options["fps"], seed)
        assert torch.isfinite(control).all() and np.isfinite(bucket())
        frame = torch.from_numpy(inputs.image).permute(2, 0, 1)
        shown = control_video(*enlarged(control, frame, panel_factor(frame.shape[2])))
        return {"first frame": inputs.image, "control": shown, "generated": np.stack([inputs.image] * len(control))}

    generation.load_pipeline, generation.panels_of = (lambda *args: stub()), panels_of
    sys.exit(remoco(["generate", "embedded-sprites", *words, "--out", "../out/clip.mp4"]))


def asked(route: str, body: str) -> None:
    """What the page's server does with a request's body."""
    studio = Studio(Checkpoint(stub()))
    routes = {
        "open": exchange.opened, "attach": exchange.attached, "moving": studio.moving, "control": studio.control,
        "cancel": studio.cancel, "paths": lambda body: exchange.paths(body, preview(body, studio.maker).frames),
    }  # fmt: skip
    try:
        found = json.dumps(routes[route](parse_json(Path(body).read_bytes())), allow_nan=False)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    assert len(found) < 2**28


def loaded(path: str) -> None:
    """`from_checkpoint` of a file."""
    try:
        MotionControlPipeline.from_checkpoint(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def save_sound(path: str) -> None:
    """A checkpoint of the smallest model."""
    torch.set_num_threads(1)
    base = Sprites("micro", latents="space_to_depth", trained=True)
    module = MotionControlModule(base, RegionWise(8, 0.0), Control(lora=None))
    module.configure_model()
    state = {name: value.detach() for name, value in module.stored().items()}
    kept = {"state_dict": state, "remoco": module.own_record(), "callbacks": {}, "epoch": 0, "global_step": 1}
    torch.save(kept, path)


def commanded(words: list[str]) -> None:
    """`remoco WORDS`."""
    with contextlib.suppress(BrokenPipeError):
        sys.exit(remoco(words))


def taken(size: int) -> None:
    """Take so many bytes, for the test of the bound."""
    bytearray(size)
