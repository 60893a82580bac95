"""The clips of `remoco generate`: of one image or of a folder of them, with a strip beside each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from callbacks.made_by import RECORD, as_json, clip_seed, made_by, refuse_to_mix
from callbacks.strips import panel_factor, sheet, strip, write_mp4, write_png
from conditions import Condition, RegionWise, control_video
from datamodules.drawings import Drawing, Framing
from datamodules.drawings.motion import SceneMotion, scene_motion
from datamodules.drawings.panels import enlarged
from datamodules.trackers import make_tracker
from lightning_modules.bases.said import DRAWING, PROMPT, rate
from lightning_modules.control.pixels import moved_matte
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.pipeline_call import base_inputs
from lightning_modules.pipeline_prompts import embed_prompts
from lightning_modules.systems.ours import opened
from remoco.common.errors import UserError, one_line
from remoco.common.pictures import WHITE
from remoco.common.videos.masters import check_sequence, write_mov, write_pngs
from remoco.common.whole_files import check_writable, clear_leftovers, write_json
from remoco.devices import usable_device
from remoco.generate import Clip, Format, Loading, Motion, OtherSystem, SamplingChanges
from remoco.generation_jobs import Job, jobs_of, read_inputs
from remoco.generation_options import options_of, plan_of
from remoco.other_system import load_other, system_panels
from remoco.systems import fingerprint, system_class
from remoco.unseen import unseen


@dataclass(frozen=True)
class Generator:
    """What makes the clips: a checkpoint, or another system.

    Attributes:
        record: what a folder of clips records of it.
        steps: of the sampler, for a clip.
        fps: frames per second of the files.
        framing: the frame that a drawing gets.
        panels: of a strip, of a drawing in its frame, the scene's motion, a seed, and what to call after each step.
        unseen: a line where a picture (H, W, 3) uint8 is of a kind that was not trained on, else None.
        embed: makes the embeddings of the drawings' prompts, before the first clip; all at once.
        condition: draws the control that moves a matte.
    """

    record: dict[str, Any]
    steps: int
    fps: float
    framing: Callable[[Drawing], Framing]
    panels: Callable[[Drawing, SceneMotion, int, Callable[[int], object]], dict[str, np.ndarray]]
    unseen: Callable[[np.ndarray], str | None] = lambda picture: None
    embed: Callable[[Sequence[str | None]], object] = lambda prompts: None
    condition: Condition = field(default_factory=RegionWise)

    def matte(self, drawing: Drawing, motion: SceneMotion, frames: int, seed: int) -> np.ndarray | None:
        """(L, H, W) uint8, how opaque each frame is of a drawing in its frame; None where its picture is everywhere."""
        if drawing.alpha is None:
            return None
        return moved_matte(drawing.alpha, motion.control(self.condition, drawing, frames, self.fps, seed)[0])


def run(
    checkpoint: str,
    image: str | None,
    motion: Motion,
    out: str | None,
    clip: Clip,
    sampling: SamplingChanges,
    loading: Loading,
    other: OtherSystem,
) -> int:
    """Generate what is missing; the arguments and what is returned are those of `remoco.generate.generate`."""
    if other.system is not None:
        if image is not None:
            raise UserError(f"{checkpoint}, {image}: expected the image alone beside --system, whose file is --weights")
        image = checkpoint
    if image is None:
        raise UserError("image: missing, expected a checkpoint and an image")
    backdrop, follow = motion.backdrop(), cache(partial(make_tracker, motion.tracker))
    scene_motion(backdrop, follow, background=motion.colour)  # its files' errors are reported once, before the work
    if Path(image).is_dir() and motion.tracker != "dis":
        follow()  # so are the tracker's
    matted = clip.format != "mp4"
    read = partial(read_inputs, backdrop=backdrop, tracker=follow, background=motion.colour, matted=matted)
    jobs, folder, left_out = jobs_of(image, motion.tracks, motion.brush, out, clip.format, read)
    if other.system is None:
        generator = of_checkpoint(checkpoint, clip, sampling, loading)
    else:
        generator = of_system(other, motion, clip, sampling, loading)
    if folder is None:
        check_writable(jobs[0].strip if clip.format == "png" else jobs[0].video, "--out")
    if folder is not None:
        flags = {name: value for name, value in asdict(motion).items() if name not in ("tracks", "brush")}
        made_by = {"inputs": str(Path(image).resolve()), "seed": clip.seed, "fit": clip.fit, **flags}
        _keep(folder, made_by | {"background": motion.colour, "format": clip.format} | generator.record)
        states = [job.state() for job in jobs]
        if there := states.count("done"):
            print(f"{there} of {len(jobs)} are there already")
        for job, state in zip(jobs, states, strict=True):
            if state == "edited":
                print(f"{job.name}: its inputs have changed; made again")
        jobs = [job for job, state in zip(jobs, states, strict=True) if state != "done"]
        for job in jobs if clip.format == "png" else ():
            check_sequence(job.video)
    written = [folder / "videos", folder / "strips"] if folder else [*jobs[0].files]
    if out is None and jobs:
        print(f"without --out this writes {_listed(written)} in {Path.cwd()}", flush=True)
    generator.embed([job.prompt for job in jobs])
    _write(jobs, folder is not None, generator, motion.colour, clip)
    print(f"wrote {_listed(written)}")
    return int(left_out > 0)


def _write(
    jobs: Sequence[Job],
    of_folder: bool,
    generator: Generator,
    background: tuple[int, int, int],
    clip: Clip,
) -> None:
    """Generate the clips and write their files."""
    warned = False  # once is enough for a folder
    with tqdm(total=generator.steps * len(jobs), desc="generate", unit="step", disable=not jobs) as bar:
        for job in jobs:
            bar.set_postfix_str(job.name)
            seed = clip_seed(clip.seed, job.name) if of_folder else clip.seed
            try:
                drawing, motion = job.read()
                fingerprint = drawing.fingerprint()
                if not warned and (line := generator.unseen(drawing.image)):
                    tqdm.write(f"{job.name}: {line}", sys.stderr)
                    warned = True
                framing = generator.framing(drawing)
                drawing, motion = drawing.framed(framing, background), motion.framed(framing)
                panels = generator.panels(drawing, motion, seed, lambda step: bar.update())
                matte = generator.matte(drawing, motion, len(panels["generated"]), seed)
            except UserError as error:
                raise UserError(f"{job.name}: {one_line(error)}") from error
            for path in job.files:
                path.parent.mkdir(parents=True, exist_ok=True)
            _write_video(job.video, clip.format, panels["generated"], generator.fps, matte)
            moving = strip(panels, f"{job.name}, seed {clip.seed}")
            write_png(job.files[2], sheet([moving]))
            write_mp4(job.strip, moving, generator.fps)
            if of_folder:
                write_json(job.record, {"inputs": fingerprint})  # the last: with it the clip is done


def _write_video(path: Path, form: Format, video: np.ndarray, fps: float, matte: np.ndarray | None) -> None:
    """Write a clip: H.264 without its matte, ProRes 4444, or a folder of PNGs, whose name may end in anything."""
    if form == "mp4":
        write_mp4(path, video, fps)
    elif form == "mov":
        write_mov(path, video, fps, matte)
    else:
        write_pngs(path, video, matte)


def _listed(paths: Sequence[Path]) -> str:
    return f"{', '.join(map(str, paths[:-1]))} and {paths[-1]}"


def of_checkpoint(checkpoint: str, clip: Clip, sampling: SamplingChanges, loading: Loading) -> Generator:
    """What a checkpoint, or a folder of `save_pretrained`, generates; UserError where it does not read."""
    pipe = load_pipeline(checkpoint, loading, clip)
    options, parts = options_of(pipe, clip, sampling)
    size = {"area": pipe.grid.area, "height": clip.height, "width": clip.width}
    return Generator(
        made_by(pipe.module, size | options),
        options["num_inference_steps"] * parts,
        clip.fps,
        lambda drawing: drawing.framing(pipe.grid, clip.fit, clip.height, clip.width),
        lambda drawing, motion, seed, progress: panels_of(pipe, drawing, motion, seed, options, progress),
        partial(unseen, pipe),
        lambda prompts: embed_prompts(pipe, prompts, options),
        pipe.module.condition if pipe.module.condition.says_motion else RegionWise(),
    )


def of_system(other: OtherSystem, motion: Motion, clip: Clip, sampling: SamplingChanges, loading: Loading) -> Generator:
    """What another system generates, at its own size, length and rate.

    Raises:
        UserError: a flag says what the system does not take, or its files are not those it needs.
    """
    kind = system_class(str(other.system))
    given = [name for name in ("camera", "poses", "depth", "driving") if getattr(motion, name) is not None]
    given += ["brush"] if motion.brush is not None and not getattr(kind, "takes_brush", True) else []
    if given:
        raise UserError(f"--{given[0]}: {other.system} does not take it")
    changed = [
        name.replace("_", "-")
        for own, usual in ((clip, Clip()), (sampling, SamplingChanges()), (loading, Loading()))
        for name, value in asdict(own).items()
        if value != getattr(usual, name) and name not in ("seed", "fit", "format", "svd", "device", "dtype")
    ]
    if changed:
        raise UserError(f"--{changed[0]}: {other.system} has settings of its own, see --options")
    system, choice = load_other(other, loading)
    made_by = {"choice": asdict(choice), "weights": fingerprint(choice), "dtype": loading.dtype or "float32"}
    return Generator(
        made_by | {"protocol": system.protocol},
        system.steps,
        system.fps,
        lambda drawing: Framing.of(drawing.size, system.size, clip.fit, drawing.starts),
        lambda drawing, _, seed, progress: system_panels(system, drawing, seed, progress),
    )


def panels_of(
    pipe: MotionControlPipeline,
    drawing: Drawing,
    motion: SceneMotion,
    seed: int,
    options: dict[str, Any],
    progress: Callable[[int], object],
) -> dict[str, np.ndarray]:
    """Panels of a strip: first frame, control, and the generated clip (L, H, W, 3) uint8.

    Args:
        pipe: what generates.
        drawing: in its frame.
        motion: of the camera or a driving video.
        seed: seed of the noise.
        options: options of the pipeline's call; the rate is also a driving video's. A drawing with `longer` is given to
            the pipeline itself, which measures and cuts it.
        progress: called after each step with its number from 0; an exception from it ends the generation.
    """

    def on_step(_: Any, step: int, *__: Any) -> dict[str, Any]:
        progress(step)
        return {}

    control, drawn = motion.control(pipe.module.condition, drawing, options["num_frames"], options["fps"], seed)
    known, sampling = pipe.module.base.inputs(), options.get("sampling", pipe.module.sampling)
    said = rate(known, options["fps"]) | {"motion_bucket_id": options.get("motion_bucket_id")}
    inputs = base_inputs(known, sampling.inputs, said)
    given: dict[str, Any] = {"image": drawing.image, "control": control}
    if "longer" in options:
        scene = replace(motion, fps=options["fps"])
        given = {"image": drawing, "control": scene, "height": drawing.size[0], "width": drawing.size[1]}
    elif measured := [name for name, value in inputs.items() if value == DRAWING and not known[name].text]:
        inputs |= dict.fromkeys(measured, drawn())
    options = {name: value for name, value in options.items() if name not in ("fps", "motion_bucket_id")}
    options["sampling"] = sampling.but(inputs=inputs)
    if drawing.prompt is not None and PROMPT in known:
        options.setdefault(PROMPT, drawing.prompt)
    output = pipe(**given, seed=seed, callback_on_step_end=on_step, **options)
    frame = torch.from_numpy(drawing.image).permute(2, 0, 1)
    return {
        "first frame": drawing.image,
        "control": control_video(*enlarged(control, frame, panel_factor(frame.shape[2]))),
        "generated": np.stack(output.frames[0]),
    }


def load_pipeline(checkpoint: str, loading: Loading, clip: Clip | None = None) -> MotionControlPipeline:
    """The pipeline of a checkpoint or a folder of `save_pretrained`, where it is to compute, for clips of a kind.

    Raises:
        UserError: one line.
    """
    place = usable_device(loading.device)
    kind = getattr(torch, loading.dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    pipe = opened(checkpoint, loading.svd, "cpu", kind, loading.second)
    try:
        if loading.memory is not None:
            clip = clip or Clip()
            plan_of(pipe, clip)  # its errors name the flag
            size = clip.largest(pipe.trained_clip, pipe.grid.multiple, pipe.grid.only)
            how = pipe.fit_memory(loading.memory, place, size, clip.longer, clip.overlap)
            print(f"--memory: {how}", flush=True)
        else:
            pipe.enable_model_cpu_offload(place) if loading.offload else pipe.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {loading.device}: {one_line(error)}") from None
    return pipe


def _keep(folder: Path, settings: dict[str, Any]) -> None:
    """Record what makes the clips of a folder; refuse to add to clips that other settings made."""
    made = as_json(settings)
    absent = {"background": list(WHITE), "format": "mp4"}  # older folders do not record them
    if not refuse_to_mix(folder, made, f"--out {folder}: holds clips", "give another folder", absent):
        write_json(folder / RECORD, made)
    for kind in ("videos", "strips"):
        for inner in [folder / kind, *(folder / kind).rglob("*/")]:
            clear_leftovers(inner)
