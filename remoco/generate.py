"""`remoco generate`: an image, drawn tracks and a brush to a video, of one image or of a folder of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from callbacks.made_by import RECORD, clip_seed, made_by, refuse_to_mix
from callbacks.strips import panel_factor, sheet, strip, write_mp4, write_png
from conditions import control_video
from datamodules.drawings import Backdrop, Drawing, Fit, FrameArea, backdrop_from_flags, find_drawings, read_drawing
from datamodules.drawings.motion import SceneMotion, scene_motion
from datamodules.drawings.panels import enlarged
from datamodules.trackers import Tracker, make_tracker
from lightning_modules import embedded
from lightning_modules.bases.said import DRAWING, rate
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.pipeline_call import base_inputs
from remoco.common.errors import UserError, one_line
from remoco.common.json_files import read_json
from remoco.common.pictures import WHITE, colour_of
from remoco.common.whole_files import check_writable, clear_leftovers, write_json
from remoco.devices import usable_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

RANGES = {
    "num_frames": ("num-frames", 2, 1024),
    "num_inference_steps": ("steps", 1, 10_000),
    "min_guidance_scale": ("min-guidance-scale", 0, 1000),
    "max_guidance_scale": ("max-guidance-scale", 0, 1000),
    "fps": ("fps", 0.1, 1000),
}


@dataclass(frozen=True)
class Job:
    """One clip to generate: its name, where its inputs are, the files of video and strip, the inputs' fingerprint."""

    name: str
    read: Callable[[], tuple[Drawing, SceneMotion]]
    video: Path
    strip: Path
    fingerprint: str

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """What it writes: the video, its strip, and the strip as a picture."""
        return self.video, self.strip, self.strip.with_suffix(".png")

    @property
    def record(self) -> Path:
        """What the video was made of, beside its strip."""
        return self.strip.with_suffix(".json")

    def state(self) -> Literal["done", "edited", "missing"]:
        """Whether both files are there, and whether of these inputs."""
        if not (self.video.is_file() and self.strip.is_file() and self.record.is_file()):
            return "missing"
        try:
            same = read_json(self.record)["inputs"] == self.fingerprint
        except (OSError, ValueError, TypeError, KeyError):
            same = False
        return "done" if same else "edited"


def generate(
    checkpoint: str,
    image: str,
    tracks: str | None = None,
    brush: str | None = None,
    out: str | None = None,
    background: str = "white",
    camera: str | None = None,
    poses: str | None = None,
    depth: str | None = None,
    driving: str | None = None,
    tracker: str = "dis",
    num_frames: int | None = None,
    steps: int | None = None,
    min_guidance_scale: float | None = None,
    max_guidance_scale: float | None = None,
    motion_bucket_id: float | Literal["drawing"] | None = None,
    fps: float = 8.0,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    fit: Fit = "crop",
    svd: str | None = None,
    device: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    offload: bool = False,
) -> int:
    """Turn an image, drawn tracks and a brush into a video; a strip beside it shows inputs and result.

    Args:
        checkpoint: Checkpoint of a run, or `embedded`, the small one in the package.
        image: Picture to start from; or a folder of inputs, in the benchmark's layout or as image.png, tracks.npy,
            visibility.npy.
        tracks: Tracks of a picture: JSON as the benchmark's meta_data.json, or .npy (N, L, 2).
        brush: Mask of what may move in a picture.
        out: Name of the .mp4 file to write; its strip goes beside it, as NAME-strip.mp4 and NAME-strip.png.
            Default: clip.mp4 in the working folder. With a folder of inputs it names the folder that gets videos/ and
            strips/. Default: generated.
        background: Colour behind transparent parts of the picture and of a driving video, for example `black` or
            `#00ff00`.
        camera: Motion of the camera, for example `pan:0.2,zoom:1.3`: pan right by a part of the width, tilt up by a
            part of the height, zoom by a factor, roll clockwise by degrees. Tracks are then objects' own motion.
        poses: Path of the camera in RealEstate10K's text format; it needs --depth.
        depth: Depth of the image: .npy (H, W) in the unit of the poses, or a PNG of 16 bits in millimetres.
        driving: Video whose motion the clip takes; a brush without tracks says where.
        tracker: Tracker that follows the driving video: dis, tracks, dot, or the class path of your own.
        num_frames: Length of the clips in frames. Default: the checkpoint's.
        steps: Number of sampler steps. Default: the checkpoint's.
        min_guidance_scale: Guidance of the first frame. Default: the checkpoint's.
        max_guidance_scale: Guidance of the last frame. Default: the checkpoint's.
        motion_bucket_id: Mean displacement in pixels that the network gets as input, or `drawing` for that of the
            drawing. Default: the checkpoint's.
        fps: Frames per second, of the files and as the network's input.
        seed: Seed of the noise; in a folder of inputs each name has its own, derived from this one.
        height: Height of the clip in pixels, a multiple of 64. With height or width alone the other follows the image's
            shape; with neither, the clip has as many pixels as the checkpoint was trained at, in the shape nearest to
            the image's.
        width: Width of the clip in pixels, a multiple of 64.
        fit: How an image is brought to the clip's shape. `crop` scales it to cover the clip and cuts off the rest,
            `pad` puts the background around it, `stretch` squeezes it.
        svd: Folder or hub id of the base. Default: where the checkpoint says that it is.
        device: Torch device, for example `cuda:0` or `cpu`. Default: the GPU if there is one.
        dtype: Number format of the frozen networks. Default: bfloat16 on a GPU, float32 on a CPU.
        offload: Keep the image encoder and the VAE off the GPU while sampling.

    Returns:
        1 where inputs of a folder were left out, each named on a line; otherwise 0.
    """
    FrameArea().check(**{"--height": height, "--width": width})
    backdrop, follow = backdrop_from_flags(camera, poses, depth, driving), cache(partial(make_tracker, tracker))
    behind = colour_of(background, "--background")
    scene_motion(backdrop, follow, background=behind)  # its files' errors are reported once, before the work
    if Path(image).is_dir() and tracker != "dis":
        follow()  # so are the tracker's
    read = partial(_read, backdrop=backdrop, tracker=follow, background=behind)
    jobs, folder, left_out = _jobs(image, tracks, brush, out, read)
    pipe = load_pipeline(checkpoint, svd, device, dtype, offload)
    try:
        usual = pipe.module.sampling.inputs
        inputs = base_inputs(pipe.module.base.inputs(), usual, {"motion_bucket_id": motion_bucket_id})
    except UserError as error:
        raise UserError(f"--motion-bucket-id: {error}") from None
    options: dict[str, Any] = {
        "num_frames": pipe.sampling["num_frames"] if num_frames is None else num_frames,
        "num_inference_steps": pipe.module.sampling.steps if steps is None else steps,
        "min_guidance_scale": pipe.module.sampling.guidance[0] if min_guidance_scale is None else min_guidance_scale,
        "max_guidance_scale": pipe.module.sampling.guidance[1] if max_guidance_scale is None else max_guidance_scale,
        "motion_bucket_id": inputs.get("motion_bucket_id"),
        "fps": fps,
    }
    _check_numbers(options)
    if folder is None:
        check_writable(jobs[0].video, "--out")
    if folder is not None:
        flags = {
            "background": behind,
            "camera": camera,
            "poses": poses,
            "depth": depth,
            "driving": driving,
            "tracker": tracker,
        }
        size = {"area": pipe.grid.area, "height": height, "width": width, "fit": fit}
        _keep(folder, {"inputs": str(Path(image).resolve()), "seed": seed, **size, **options, **flags}, pipe)
        states = [job.state() for job in jobs]
        if there := states.count("done"):
            print(f"{there} of {len(jobs)} are there already")
        for job, state in zip(jobs, states, strict=True):
            if state == "edited":
                print(f"{job.name}: its inputs have changed; made again")
        jobs = [job for job, state in zip(jobs, states, strict=True) if state != "done"]
    written = [folder / "videos", folder / "strips"] if folder else [*jobs[0].files]
    if out is None and jobs:
        print(f"without --out this writes {_listed(written)} in {Path.cwd()}", flush=True)
    with tqdm(total=options["num_inference_steps"] * len(jobs), desc="generate", unit="step", disable=not jobs) as bar:
        for job in jobs:
            bar.set_postfix_str(job.name)
            own_seed = seed if folder is None else clip_seed(seed, job.name)
            try:
                drawing, motion = job.read()
                fingerprint = drawing.fingerprint()
                framing = drawing.framing(pipe.grid, fit, height, width)
                drawing, motion = drawing.framed(framing, behind), motion.framed(framing)
                panels = clip(pipe, drawing, motion, own_seed, options, lambda step: bar.update())
            except UserError as error:
                raise UserError(f"{job.name}: {one_line(error)}") from error
            for path in job.files:
                path.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(job.video, panels["generated"], fps)
            moving = strip(panels, f"{job.name}, seed {seed}")
            write_png(job.files[2], sheet([moving]))
            write_mp4(job.strip, moving, fps)
            if folder is not None:
                write_json(job.record, {"inputs": fingerprint})  # the last: with it the clip is done
    print(f"wrote {_listed(written)}")
    return int(left_out > 0)


def _listed(paths: Sequence[Path]) -> str:
    return f"{', '.join(map(str, paths[:-1]))} and {paths[-1]}"


def _check_numbers(options: dict[str, Any]) -> None:
    """UserError for a number out of its range, before a folder notes it and anything is sampled."""
    for name, (flag, least, most) in RANGES.items():
        if not least <= options[name] <= most:
            raise UserError(f"--{flag} is {options[name]}, expected a number from {least:g} to {most:g}")


def clip(
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
        options: options of the pipeline's call; the rate is also a driving video's.
        progress: called after each step with its number from 0; an exception from it ends the generation.
    """

    def on_step(_: Any, step: int, *__: Any) -> dict[str, Any]:
        progress(step)
        return {}

    control, drawn = motion.control(pipe.module.condition, drawing, options["num_frames"], options["fps"], seed)
    known, sampling = pipe.module.base.inputs(), options.get("sampling", pipe.module.sampling)
    said = rate(known, options["fps"]) | {"motion_bucket_id": options.get("motion_bucket_id")}
    inputs = base_inputs(known, sampling.inputs, said)
    if DRAWING in inputs.values():
        moved = drawn()
        inputs = {name: moved if value == DRAWING else value for name, value in inputs.items()}
    options = {name: value for name, value in options.items() if name not in ("fps", "motion_bucket_id")}
    options["sampling"] = sampling.but(inputs=inputs)
    output = pipe(drawing.image, control=control, seed=seed, callback_on_step_end=on_step, **options)
    frame = torch.from_numpy(drawing.image).permute(2, 0, 1)
    return {
        "first frame": drawing.image,
        "control": control_video(*enlarged(control, frame, panel_factor(frame.shape[2]))),
        "generated": np.stack(output.frames[0]),
    }


def _read(
    source: Path,
    tracks: str | None = None,
    brush: str | None = None,
    *,
    backdrop: Backdrop | None,
    tracker: Callable[[], Tracker],
    background: tuple[int, int, int],
) -> tuple[Drawing, SceneMotion]:
    """A drawing and how its scene moves: as the flags say, or where they are silent as the drawing does."""
    inputs = read_drawing(source, tracks, brush, background)
    inputs.backdrop = backdrop or inputs.backdrop
    return inputs, scene_motion(inputs.backdrop, tracker, inputs.size, background)


def _jobs(
    image: str,
    tracks: str | None,
    brush: str | None,
    out: str | None,
    read: Callable[..., tuple[Drawing, SceneMotion]],
) -> tuple[list[Job], Path | None, int]:
    """What is to be done, all of it read once; the folder to write to, None for a file; how many cannot be used."""
    source = Path(image)
    if not source.is_dir():
        path = Path(out or "clip.mp4")
        _check_file(path)
        one = partial(read, source, tracks, brush)
        inputs = one()[0]
        if not inputs.tracks and inputs.brush is None and inputs.backdrop is None:
            raise UserError("--tracks: expected tracks, or --brush, --camera, --poses or --driving: nothing would move")
        return [_single(source.name, one, path, inputs)], None, 0
    for name, value in (("--tracks", tracks), ("--brush", brush)):
        if value is not None:
            raise UserError(f"{name}: expected none with a folder of inputs, which holds its own")
    drawings = find_drawings(source)
    if list(drawings.values()) == [source] and out is not None and out.endswith(".mp4"):
        one = partial(read, source)
        return [_single(source.name, one, Path(out), one()[0])], None, 0
    folder = Path(out or "generated")
    if folder.suffix == ".mp4" or folder.is_file():
        raise UserError(f"--out {folder}: expected a folder for the videos of the inputs in {source}")
    jobs, left_out = [], 0
    for name, path in drawings.items():
        try:
            inputs, _ = read(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            left_out += 1
            continue
        video, strip_file = (folder / kind / f"{name}.mp4" for kind in ("videos", "strips"))
        jobs.append(Job(name, partial(read, path), video, strip_file, inputs.fingerprint()))
    if not jobs:
        raise UserError(f"{source}: none of its {left_out} inputs can be used")
    return jobs, folder, left_out


def _single(name: str, read: Callable[[], tuple[Drawing, SceneMotion]], path: Path, inputs: Drawing) -> Job:
    return Job(name, read, path, path.with_name(f"{path.stem}-strip.mp4"), inputs.fingerprint())


def _check_file(path: Path) -> None:
    if path.suffix != ".mp4":
        raise UserError(f"--out {path}: expected the name of an .mp4 file")


def load_pipeline(
    checkpoint: str, svd: str | None, device: str | None, dtype: str | None = None, offload: bool = False
) -> MotionControlPipeline:
    """The pipeline of a checkpoint or a folder of `save_pretrained`, as the flags of `generate` say.

    Raises:
        UserError: one line.
    """
    place = usable_device(device)
    kind = DTYPES[dtype or ("bfloat16" if place.type == "cuda" else "float32")]
    try:
        if Path(checkpoint).is_dir():
            pipe = MotionControlPipeline.from_pretrained(checkpoint, svd, dtype=kind)
        else:
            pipe = MotionControlPipeline.from_checkpoint(embedded.located(checkpoint), svd, dtype=kind)
    except UserError as error:
        raise UserError(f"checkpoint: {error}") from None
    try:
        pipe.enable_model_cpu_offload(place) if offload else pipe.to(place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {one_line(error)}") from None
    return pipe


def _keep(folder: Path, settings: dict[str, Any], pipe: MotionControlPipeline) -> None:
    """Record what makes the clips of a folder; refuse to add to clips that other settings made."""
    made = made_by(pipe.module, settings)
    absent = {"background": list(WHITE)}  # older folders do not record it
    if not refuse_to_mix(folder, made, f"--out {folder}: holds clips", "give another folder", absent):
        write_json(folder / RECORD, made)
    for kind in ("videos", "strips"):
        for inner in [folder / kind, *(folder / kind).rglob("*/")]:
            clear_leftovers(inner)
