"""`remoco generate`: what it is asked for, one dataclass for each concern. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from datamodules.drawings.backdrop import Backdrop, backdrop_from_flags
from datamodules.drawings.framing import LEAST_STEP, Fit, FrameArea, check_fit
from lightning_modules.config import MOST_STEPS, Scale, Steps
from remoco.common.errors import UserError
from remoco.common.pictures import colour_of
from remoco.common.ranges import number, within

MOST_FRAMES, LEAST_FPS, MOST_FPS = 1024, 0.1, 1000
LEAST_GIB, MOST_GIB = 0.5, 1024
Dtype = Literal["float32", "bfloat16", "float16"]
Format = Literal["mp4", "mov", "png"]

if not TYPE_CHECKING:  # jsonargparse runs what stands below `if TYPE_CHECKING`
    Frames = number(int, 2, MOST_FRAMES)
    Rate = number(float, LEAST_FPS, MOST_FPS)
    Gib = number(float, LEAST_GIB, MOST_GIB)
else:
    Frames: TypeAlias = int
    Rate: TypeAlias = float
    Gib: TypeAlias = float


@dataclass(frozen=True)
class Motion:
    """What is drawn on the picture, and how the scene behind it moves."""

    tracks: str | None = None
    """Tracks of a picture: JSON as the benchmark's meta_data.json, or .npy (N, L, 2). Or those of other tools: ATI's
    .pth, Wan-Move's and CoTracker's .npy and .npz, the JSON of KJNodes' spline editor."""
    brush: str | None = None
    """Mask of what may move in a picture."""
    background: str = "white"
    """Colour behind transparent parts of the picture and of a driving video, for example `black` or `#00ff00`."""
    camera: str | None = None
    """Motion of the camera, for example `pan:0.2,zoom:1.3`: pan right by a part of the width, tilt up by a part of the
    height, zoom by a factor, roll clockwise by degrees. Tracks are then objects' own motion."""
    poses: str | None = None
    """Path of the camera in RealEstate10K's text format; it needs --depth."""
    depth: str | None = None
    """Depth of the image: .npy (H, W) in the unit of the poses, or a PNG of 16 bits in millimetres."""
    driving: str | None = None
    """Video whose motion the clip takes; a brush without tracks says where."""
    tracker: str = "dis"
    """Tracker that follows the driving video: dis, tracks, dot, or the class path of your own."""

    def __post_init__(self) -> None:
        colour_of(self.background, "--background")

    @property
    def colour(self) -> tuple[int, int, int]:
        """R, G, B of the background."""
        return colour_of(self.background)

    def backdrop(self) -> Backdrop | None:
        """What moves behind the drawing; UserError where its flags exclude each other or a file is not there."""
        return backdrop_from_flags(self.camera, self.poses, self.depth, self.driving)


@dataclass(frozen=True)
class Clip:
    """The clip that is made of a picture."""

    num_frames: Frames | None = None
    """Length of the clips in frames. Default: the checkpoint's."""
    longer: Literal["windows", "continue"] | None = None
    """How a clip is made that has more frames than those of the training. `windows`: overlapping windows of the trained
    length are denoised together, each from the first frame. `continue`: part by part, each from the last frame of the
    one before. Default: the network sees all frames at once."""
    overlap: int | None = None
    """Frames that neighbouring windows share at least. Default: half of the trained length."""
    fps: Rate = 8.0
    """Frames per second, of the files and as the network's input."""
    seed: int = 0
    """Seed of the noise; in a folder of inputs each name has its own, derived from this one."""
    height: int | None = None
    """Height of the clip in pixels, a multiple of the base's step, 64 for Stable Video Diffusion. With height or width
    alone the other follows the image's shape; with neither, the clip has as many pixels as the checkpoint was trained
    at, in the shape nearest to the image's."""
    width: int | None = None
    """Width of the clip in pixels; see height."""
    fit: Fit = "crop"
    """How an image is brought to the clip's shape. `crop` scales it to cover the clip and cuts off the rest, `pad`
    puts the background around it, `stretch` squeezes it."""
    format: Format = "mp4"
    """What the clip is written as. `mp4` is H.264, `mov` ProRes 4444, and `png` a folder of numbered pictures. With
    `mov` and `png` the transparency of the picture moves with the drawing, as the fourth channel."""

    def __post_init__(self) -> None:
        if self.num_frames is not None:
            within("--num-frames", self.num_frames, 2, MOST_FRAMES, whole=True)
        if self.longer not in (None, "windows", "continue"):
            raise UserError(f"--longer is {self.longer!r:.40}, expected windows or continue")
        if self.overlap is not None:
            if self.longer != "windows":
                raise UserError(f"--overlap is {self.overlap}, expected --longer windows beside it")
            within("--overlap", self.overlap, 0, MOST_FRAMES, whole=True)
        within("--fps", self.fps, LEAST_FPS, MOST_FPS)
        FrameArea(multiple=LEAST_STEP).check(**{"--height": self.height, "--width": self.width})
        check_fit(self.fit)
        if self.format not in get_args(Format):
            raise UserError(f"--format is {str(self.format):.40}, expected one of {', '.join(get_args(Format))}")

    def largest(
        self, trained: tuple[int, int, int], multiple: int, only: tuple[int, int] | None = None
    ) -> tuple[int, int, int]:
        """Frames, height and width of what memory is counted for.

        Args:
            trained: Those of training, which hold where nothing is said.
            multiple: Of which sides are multiples. Beside one side that is said the other is 16/9 of it.
            only: The one height and width that the base takes, where there is but one.
        """
        frames, height, width = trained
        if only is not None:
            height, width = self.height or only[0], self.width or only[1]
        elif self.height or self.width:
            side = self.height or self.width or 0
            other = -(-side * 16 // (9 * multiple)) * multiple
            height, width = self.height or other, self.width or other
        return self.num_frames or frames, height, width


@dataclass(frozen=True)
class SamplingChanges:
    """Changes to the checkpoint's sampling (`lightning_modules.config.Sampling`)."""

    steps: Steps | None = None
    """Number of sampler steps. Default: the checkpoint's."""
    min_guidance_scale: Scale | None = None
    """Guidance of the first frame. Default: the checkpoint's."""
    max_guidance_scale: Scale | None = None
    """Guidance of the last frame. Default: the checkpoint's."""
    motion_bucket_id: float | Literal["drawing"] | None = None
    """Mean displacement in pixels that the network gets as input, or `drawing` for that of the drawing. Default: the
    checkpoint's."""
    guidance_scale_2: Scale | None = None
    """Guidance of all frames by the low-noise expert of Wan 2.2 A14B. Default: the checkpoint's."""
    prompt: str | None = None
    """What the clip shows, in words, where the checkpoint's base takes text. Default: `prompt` in the JSON of the
    tracks, else the checkpoint's."""
    negative_prompt: str | None = None
    """What the clip shall not show, in words. Default: the checkpoint's."""

    def __post_init__(self) -> None:
        if self.steps is not None:
            within("--steps", self.steps, 1, MOST_STEPS, whole=True)
        for name in ("min_guidance_scale", "max_guidance_scale", "guidance_scale_2"):
            if (scale := getattr(self, name)) is not None:
                within(f"--{name.replace('_', '-')}", scale, 0, 1000)


@dataclass(frozen=True)
class Loading:
    """Where the networks come from, and where they compute."""

    svd: str | None = None
    """Folder or hub id of the base. Default: where the checkpoint says that it is."""
    device: str | None = None
    """Torch device, for example `cuda:0` or `cpu`. Default: the GPU if there is one."""
    dtype: Dtype | None = None
    """Number format of the frozen networks. Default: bfloat16 on a GPU, float32 on a CPU."""
    offload: bool = False
    """Keep the image encoder and the VAE off the GPU while sampling, and the one of two experts that a step does not
    use."""
    second: str | None = None
    """Checkpoint or folder of the run of the other expert, where the base is Wan 2.2 A14B. Default: that expert runs
    without control."""
    memory: Gib | None = None
    """Memory of the card in GiB. What keeps the clip within it is chosen by count and printed. Default: everything is
    on the device."""

    def __post_init__(self) -> None:
        if self.memory is not None:
            within("--memory", self.memory, LEAST_GIB, MOST_GIB)
            if self.offload:
                raise UserError("--offload: expected no such flag beside --memory, which decides that too")
        if self.dtype is not None and self.dtype not in get_args(Dtype):
            raise UserError(f"--dtype is {str(self.dtype):.40}, expected one of {', '.join(get_args(Dtype))}")


@dataclass(frozen=True)
class OtherSystem:
    """Another system in the place of a checkpoint (docs/systems.md)."""

    system: str | None = None
    """Another system to sample: dragnuwa, draganything, mofa, sgi2v, or the class path of your own. CHECKPOINT is then
    left out."""
    weights: str | None = None
    """Released file or folder of that system."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that system, for example `{quirks: corrected, settings: {steps: 10}}`."""

    def __post_init__(self) -> None:
        for name in ("weights", "options"):
            if self.system is None and getattr(self, name):
                raise UserError(f"--{name}: expected --system beside it")


_OTHER = OtherSystem()
_MOTION, _CLIP, _SAMPLING, _LOADING = Motion(), Clip(), SamplingChanges(), Loading()


def generate(
    checkpoint: str,
    image: str | None = None,
    /,
    motion: Motion = _MOTION,
    out: str | None = None,
    clip: Clip = _CLIP,
    sampling: SamplingChanges = _SAMPLING,
    loading: Loading = _LOADING,
    other: OtherSystem = _OTHER,
) -> int:
    """Turn an image, drawn tracks and a brush into a video; a strip beside it shows inputs and result.

    Args:
        checkpoint: Checkpoint of a run, or `embedded`, the small one in the package. `wan_move:FILE` and `ati:FILE` are
            these authors' transformers, with --svd WAN.
        image: Picture to start from; or a folder of inputs, in the benchmark's layout or as image.png, tracks.npy,
            visibility.npy.
        motion: What is drawn on the picture, and how the scene behind it moves.
        out: Name of the file to write, .mp4 or as --format says; its strip goes beside it, as NAME-strip.mp4 and
            NAME-strip.png. Default: clip.mp4 in the working folder. With a folder of inputs it names the folder that
            gets videos/ and strips/, which is `generated` by default.
        clip: The clip that is made of a picture.
        sampling: What differs from the checkpoint's sampling.
        loading: Where the networks come from, and where they compute.
        other: Another system in the place of the checkpoint.

    Returns:
        1 where inputs of a folder were left out, each named on a line; otherwise 0.

    Example:
        remoco generate embedded image.png --tracks tracks.json --brush mask.png --out clip.mp4
    """
    from remoco.generation import run  # torch and diffusers take seconds, and `--help` has no need of them

    return run(checkpoint, image, motion, out, clip, sampling, loading, other)
