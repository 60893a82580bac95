"""What the sets of DragAnything and MOFA-Video share: networks by their configuration, what passes through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from lightning_modules.process.edm import karras_sigmas
from lightning_modules.systems.controlled import ControlledSVD, Settings
from lightning_modules.systems.encoder_copy import EncoderCopy, Joined, Residuals
from lightning_modules.systems.files import fit
from lightning_modules.systems.quirks import Quirks
from lightning_modules.systems.svd_parts import decoded
from tests.support import frequencies
from tests.support.systems import RecordedSet

SIZES = (
    "block_out_channels", "layers_per_block", "num_attention_heads", "cross_attention_dim", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "num_frames",
)  # fmt: skip


def networks(recorded: RecordedSet, kind: type[EncoderCopy]) -> tuple[Any, EncoderCopy]:
    """UNet and copy with the set's weights, float64."""
    config = {name: recorded.config[name] for name in SIZES}
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**config)
        copy = kind(unet.config)
    for network, prefix in ((unet, "unet."), (copy, "controlnet.")):
        fit(network, recorded.part(prefix), recorded.path, prefix)
        network.double().eval().requires_grad_(False)
        frequencies.apply(network)
    return unet, copy


def other_parts(recorded: RecordedSet) -> tuple[Any, Any]:
    """VAE and image encoder with the set's weights."""
    config = recorded.config
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(**config["vae"])
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**config["image_encoder"]))
    fit(vae, recorded.part("vae."), recorded.path, "vae")
    own = {name: tensor for name, tensor in recorded.part("image_encoder.").items() if "position_ids" not in name}
    fit(encoder, own, recorded.path, "image_encoder")
    return vae, encoder


def pipeline(recorded: RecordedSet, kind: type[EncoderCopy], quirks: Quirks) -> Recording:
    """The whole system of a pipeline set."""
    config = recorded.config
    unet, copy = networks(recorded, kind)
    settings = Settings(
        size=(config["height"], config["width"]),
        frames=config["frames"],
        steps=config["steps"],
        decode_chunk=config.get("decode_chunk", 2),
    )
    svd = Recording(unet, copy, *other_parts(recorded), settings, quirks)
    svd.to("cpu", torch.float64)
    return svd


class Recording(ControlledSVD):
    """Keeps what it was given and what it predicted.

    Attributes:
        rounds: whether each step starts from latents rounded to float32, as in diffusers from 0.25 on.
        keeps_first: whether all steps get the residuals of the first.
    """

    rounds = keeps_first = False

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.first: Residuals | None = None

    def residuals(self, *args: Any) -> Residuals:
        if self.first is None or not self.keeps_first:
            self.first = super().residuals(*args)
        return self.first

    def predict(self, inputs: Tensor, timestep: Tensor, *others: Any) -> Tensor:
        found = super().predict(inputs, timestep, *others)
        self.seen.append((inputs, timestep, found))
        return found

    def step(self, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return super().step(x.float().double() if self.rounds else x, *others)


def piped(recorded: RecordedSet, svd: Recording, maps: Sequence[Tensor | None]) -> Iterator[tuple[str, Tensor]]:
    """Outputs of a pipeline set that both systems have."""
    image = recorded.input("in.image").numpy()
    cond = svd.frame_conditioning(image, recorded.input("in.augmentation_noise"))
    yield "out.clip_pixels", svd.clip_pixels(image)
    yield "out.image_embedding", cond.tokens
    yield "out.added_time_ids", cond.ids
    latents = sampled(recorded, svd, cond, maps)
    inputs, timesteps, predictions = zip(*svd.seen)
    yield "out.first_model_input", inputs[0]
    yield "out.sigmas", karras_sigmas(svd.settings.steps)
    yield "out.timesteps", torch.cat(timesteps)
    yield "out.guidance", torch.linspace(*svd.settings.guidance, svd.settings.frames)
    yield from ((f"out.prediction.{i}", each) for i, each in enumerate(predictions))
    yield "out.latents", latents
    yield "out.frames", (decoded(svd.vae, latents, svd.settings.decode_chunk)[0] + 1) / 2


def predictions(
    joined: Joined, clips: tuple[Tensor, ...], maps: Sequence[Tensor | None]
) -> Iterator[tuple[str, Tensor]]:
    """Outputs of a network set that both systems have: clip by clip, and with half the control.

    Args:
        joined: both networks.
        clips: sample, timestep, image embedding and ids.
        maps: of all clips.
    """
    (sample, timestep, token, ids), alone = clips, []
    for i in range(len(sample)):
        own = [None if one is None else one.unflatten(0, (len(sample), -1))[i] for one in maps]
        clip = sample[i : i + 1], timestep, token[i : i + 1], ids[i : i + 1]
        alone.append(joined(*clip, joined.copy(*clip, own)))
    yield "out.unet.one_by_one", torch.cat(alone)
    yield "out.unet.half_control", joined(*clips, joined.copy(*clips, maps, 0.5))


def sampled(recorded: RecordedSet, svd: Recording, cond: Any, maps: Sequence[Tensor | None]) -> Tensor:
    """Latents, with the copy run in every step as the published code has it, or as the set was recorded: there are sets
    whose later steps got the residuals of the first.
    """
    for svd.keeps_first in (False, True):
        svd.seen, svd.first = [], None
        latents = svd.sample(cond, maps, recorded.input("in.noise"), recorded.recorded["out.sigmas"])
        last = len(svd.seen) - 1
        if (svd.seen[last][2] - recorded.recorded[f"out.prediction.{last}"]).abs().max() < 1e-4:
            break
    if svd.keeps_first:
        recorded.notes.append("recorded with the residuals of the first step in all steps")
    return latents


@contextmanager
def kept(unet: Any, copy: EncoderCopy) -> Iterator[dict[str, Tensor]]:
    """What passes through the blocks of both networks, by the sets' names."""
    found: dict[str, Tensor] = {}
    hooks = []

    def after(name: str):
        def hook(module: Any, args: tuple, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def before(name: str, key: str):
        def hook(module: Any, args: tuple, kwargs: dict) -> None:
            value = kwargs[key]
            if isinstance(value, tuple):
                found.update({f"{name}.{j}": skip[:1] for j, skip in enumerate(value)})
            else:
                found[name] = value

        return hook

    for prefix, network in (("out.controlnet", copy), ("out.unet", unet)):
        for i, block in enumerate(network.down_blocks):
            hooks.append(block.register_forward_hook(after(f"{prefix}.down_block.{i}")))
        hooks.append(network.mid_block.register_forward_hook(after(f"{prefix}.mid_block"), prepend=True))
    hooks.append(
        copy.mid_block.register_forward_pre_hook(
            before("out.controlnet.before_mid_block", "hidden_states"), with_kwargs=True
        )
    )
    for i, block in enumerate(unet.up_blocks):
        hooks.append(block.register_forward_hook(after(f"out.unet.up_block.{i}")))
        hook = before(f"out.skip.up_block.{i}", "res_hidden_states_tuple")
        hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    yield found
    for hook in hooks:
        hook.remove()
