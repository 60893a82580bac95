"""Comparing a checkpoint with what is configured: architecture, base, names and shapes; and what fits a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conditions import Condition
from lightning_modules.bases import trained_on
from lightning_modules.process.bounds import Bounds, bounds_of
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from datamodules.captions import Captions
    from datamodules.shards.cached import Cached
    from lightning_modules.bases.base import VideoBase
    from lightning_modules.bases.grid import Grid
    from lightning_modules.video_module import VideoModule


def own(module: VideoModule) -> dict[str, Any]:
    """What a module's trained tensors belong to, as plain values."""
    data = getattr(module._trainer, "datamodule", None)
    shape = getattr(data, "shape", None)
    clips = {} if shape is None else {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
    return {
        "architecture": module.architecture(),
        "base": module.base.identity,
        "sampling": clips | module.sampling.record() | {"process": module.process.record()},
        "optimization": module.plan.record(),
        **trained_on.stated(module.base, data, module.start is None),
    }


def stored(networks: nn.Module, trained: Mapping[str, Tensor], whole: bool = False) -> dict[str, Tensor]:
    """Name -> tensor of all that a checkpoint holds: what is trained and fitted, or the frozen base too.

    Args:
        networks: With the base as `base`.
        trained: Name -> parameter of what is trained.
        whole: With all parameters.
    """
    fitted = networks.get_submodule("base").fitted()  # type: ignore[operator]  # a VideoBase
    prefixes = tuple(f"{name}." for name, module in networks.named_modules() if fitted is not None and module is fitted)
    parameters = dict(networks.named_parameters()) if whole else dict(trained)
    return parameters | {name: b for name, b in networks.named_buffers() if prefixes and name.startswith(prefixes)}


def check_architecture(record: dict, wanted: dict, path: str | Path) -> None:
    """Raise unless the checkpoint's architecture is the configured one, with the first field that differs."""
    for field, value in wanted.items():
        if record["architecture"].get(field) != value:
            raise UserError(
                f"ckpt_path: {path} has another architecture: {field} is {record['architecture'].get(field)} there, "
                f"{value} in the configuration"
            )


def check_base(record: dict, base: VideoBase, wanted: dict, path: str | Path) -> None:
    """Raise where names alone show that the base differs: another class, or random weights of another size or seed."""
    if not base.same_name(record["base"]):
        was = {k: v for k, v in record["base"].items() if k != "hash"}
        raise UserError(f"ckpt_path: {path} was trained over another base: {was} there, {wanted} here")


def check_hash(record: dict, identity: dict) -> None:
    """Raise unless the frozen weights are the ones the checkpoint was trained over."""
    if record["base"]["hash"] != identity["hash"]:
        was = {k: v for k, v in record["base"].items() if k != "hash"}
        raise UserError(
            f"ckpt_path: the checkpoint was trained over other base weights ({was}, "
            f"hash {record['base']['hash'][:12]}) than the ones loaded (hash {identity['hash'][:12]})"
        )


def check_names(state: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
    """Raise unless a checkpoint's tensors are exactly the trained ones, by name and shape."""
    wrong = sorted(state.keys() ^ trained.keys())
    wrong += [name for name in sorted(state.keys() & trained.keys()) if state[name].shape != trained[name].shape]
    if wrong:
        raise UserError(
            f"ckpt_path: {len(wrong)} tensors are missing, unknown or misshapen there: {', '.join(wrong[:5])}"
        )


def check_latent_cache(cached: dict[str, str], hashes: dict[str, str]) -> None:
    """Raise unless cached latents were made with the networks that were loaded; both are network -> hash."""
    for name, digest in cached.items():
        if hashes.get(name) != digest:
            raise UserError(
                f"data.shards: the cached latents were made with another {name} (hash {digest[:12]}) than this base's "
                f"({hashes.get(name, 'none')[:12]}); cache them with this base or set data.use_latents to false"
            )


def check_cached_sizes(cached: Cached | None, grid: Grid, height: int, width: int, frames: int) -> None:
    """Raise unless cached latents are of the size that a base has for clips of this size, in pixels, and length."""
    if cached is None or "latent_mean" not in cached.layout:
        return
    found, _, *sides = cached.layout["latent_mean"][1]
    wanted = (grid.latents(frames), *grid.size(height, width))
    if (found, *sides) != wanted:
        raise UserError(
            f"{cached.field}: {cached.path} has cached latents of {found} x {sides[0]} x {sides[1]}, this base's have "
            f"{' x '.join(map(str, wanted))}; cache them with this base or set data.use_latents to false"
        )


def check_text(
    captions: Iterable[Captions | Cached], base: VideoBase, hashes: Mapping[str, str], negative: object
) -> None:
    """Raise unless embeddings of captions were made with a base's own text encoder and tokenizer.

    Args:
        captions: Of the training and of the validation set.
        base: The base, which need not be built.
        hashes: Those that are known of its text encoder and its tokenizer.
        negative: The negative prompt of sampling; None for none.
    """
    for each in captions:
        if "text" not in base.conditionings:
            raise UserError(f"{each.field}: {each.path}: this base takes no text, expected none")
        for name, digest in hashes.items():
            if each.hashes.get(name, digest) != digest:
                raise UserError(
                    f"{each.field}: {each.path} was made with another {name} (hash {each.hashes[name][:12]}) than this "
                    f"base's ({digest[:12]}); make it again with `{each.maker}`"
                )
        if negative and each.negative_prompt != negative:
            raise UserError(
                f"{each.field}: {each.path} has another negative prompt than sampling.inputs.negative_prompt; make it "
                f"again with `{each.maker} --negative-prompt`"
            )


def check_data(data: Any, base: VideoBase, condition: Condition, negative: object) -> None:
    """Raise unless a base, which need not be built, and a condition take a data module's clips and what they bring.

    Args:
        data: The data module, or None.
        base: The base.
        condition: The condition.
        negative: The negative prompt of sampling; None for none.
    """
    if shape := getattr(data, "shape", None):
        size = shape.height, shape.width, shape.frames
        check_size(base.grid, condition, *size)
        check_cached_sizes(getattr(data, "cached", None), base.grid, *size)
    check_fill(condition, getattr(data, "filled", None))
    if captions := getattr(data, "captions", []):
        check_text(captions, base, base.text_hashes(), negative)


def check_size(grid: Grid, condition: Condition, height: int, width: int, frames: int | None = None) -> None:
    """Raise unless clips of this size, in pixels, and length fit the base's grid and the condition."""
    try:
        grid.check(frames, height, width)
    except ValueError as error:
        raise UserError(f"data: {error}") from error
    try:
        condition.check(height, width)
    except ValueError as error:
        raise UserError(f"model.condition: {error}") from error


def check_stages(module: VideoModule) -> Bounds | None:
    """Bounds of the noise levels that a module is trained at, where there are any; no weights are read.

    Raises:
        UserError: its noise or sampling does not fit a base whose networks divide the noise levels.
    """
    base, noise = module.base, module.noise
    base.check_stages(module.sampling)
    if module.speed.sample_graph and base.stages > 1:
        raise UserError(
            "speed.sample_graph: expected false with a base of two experts: the kernels of the first step are one's"
        )
    bounds = bounds_of(module.process, base.trained_levels())
    if bounds is not None:
        bounds.quantiles(float(noise.mean or 0), float(noise.std or 0))
    return bounds


def check_fill(condition: Condition, filled: str | None) -> None:
    """Raise where a condition reads displacements that a set of shards (its index, or None) has filled in."""
    if filled and condition.reads_hidden:
        raise UserError(
            f"model.condition: {condition} reads pixels that are not visible, whose flow is filled in {filled}; "
            "expected shards prepared with --fill none"
        )


def check_trainer(trainer: Trainer) -> None:
    """Refuse a trainer under which nothing right is trained.

    Args:
        trainer: Its precision and strategy are looked at.

    Raises:
        UserError: What is trained would be in half precision, or each process would train weights of its own.
    """
    from lightning.pytorch.strategies import ModelParallelStrategy  # where there is a trainer, lightning is there

    precision = trainer.precision
    if precision in ("bf16-true", "16-true"):
        raise UserError(
            f"trainer.precision is {precision}, expected {precision.split('-')[0]}-mixed: what is trained is float32, "
            "since a step at this learning rate is lost in half precision"
        )
    # it leaves all sharing to the module, and these modules share nothing by themselves
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError(
            "trainer.strategy is ModelParallelStrategy, expected ddp: nothing here is sharded, so no gradient would be "
            "reduced, and each process would train weights of its own"
        )


def dtype_of(trainer: Trainer | None) -> torch.dtype:
    """The compute dtype of a trainer's precision; float32 without one."""
    precision = trainer.precision.split("-")[0] if trainer is not None else "32"
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision, torch.float32)
