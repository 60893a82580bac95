"""The prompts of a pipeline call, and their embeddings for a batch of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.drawings import Drawing
from lightning_modules.bases.base import VideoBase
from lightning_modules.bases.said import NEGATIVE, PROMPT, check_text
from remoco.common.errors import UserError

if TYPE_CHECKING:
    from datamodules.batch import Batch
    from lightning_modules.pipeline import MotionControlPipeline


def prompts_of(
    usual: Mapping[str, str], prompt: Any, negative: Any, drawings: Sequence[Drawing]
) -> dict[str, list[str]]:
    """`text` and `negative_text`, one for each image; nothing for a base that takes no text.

    Args:
        usual: The configuration's `prompt` and `negative_prompt`; empty where the base takes none.
        prompt: The call's, a text for all or one for each image; None: a drawing's own, else the configuration's.
        negative: The call's; None is the configuration's.
        drawings: Of the images.

    Raises:
        UserError: one is no text, they are not as many as the images, or the base takes no text.
    """
    said = {PROMPT: prompt, NEGATIVE: negative}
    if not usual:
        if given := [name for name, value in said.items() if value is not None]:
            raise UserError(f"{given[0]}: this base takes no text, expected none")
        return {}
    own = [usual[PROMPT] if drawing.prompt is None else drawing.prompt for drawing in drawings]
    fallback = {PROMPT: own, NEGATIVE: [usual[NEGATIVE]] * len(drawings)}
    for text in own:
        check_text(PROMPT, text)
    chosen = {name: fallback[name] if value is None else _each(name, value, len(own)) for name, value in said.items()}
    return {"text": chosen[PROMPT], "negative_text": chosen[NEGATIVE]}


def _each(name: str, value: Any, count: int) -> list[str]:
    values = [value] * count if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise UserError(f"{name}: expected a text, or a list with one for each of {count} images")
    for each in values:
        check_text(name, each)
    return list(values)


def text_rows(base: VideoBase, texts: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """(B, n, D) embeddings of texts, zero beyond each one's own length, as `VideoBase.condition` takes them.

    All of them are embedded at once: a text encoder is read for that alone. What is empty for all clips is left out: it
    is the base's own, and guidance without a prompt then has one branch.

    Args:
        base: What they are for.
        texts: Name in the batch -> B texts.

    Raises:
        UserError: the base has nothing that reads them.
    """
    texts = {name: each for name, each in texts.items() if any(text.strip() for text in each)}
    every = iter(base.embed_text([text for each in texts.values() for text in each])) if texts else iter(())
    return {
        name: torch.nn.utils.rnn.pad_sequence([next(every).to(base.device) for _ in each], batch_first=True)
        for name, each in texts.items()
    }


def said_texts(inputs: Mapping[str, Any]) -> dict[str, str]:
    """The prompts among a configuration's inputs by their names in a batch; those that are not empty."""
    names = {"text": PROMPT, "negative_text": NEGATIVE}
    said = {part: str(inputs.get(name, "")) for part, name in names.items()}
    return {part: text for part, text in said.items() if text.strip()}


def with_texts(base: VideoBase, inputs: Mapping[str, Any], batch: Batch) -> Batch:
    """A batch for samples: with a configuration's prompts, where it brings no texts of its own.

    Args:
        base: What they are for.
        inputs: The configuration's `sampling.inputs`.
        batch: The clips.
    """
    said = {} if "text" in batch else said_texts(inputs)
    count = len(batch["position"])
    rows: Any = text_rows(base, {part: [text] * count for part, text in said.items()})
    return {**batch, **rows}


def embed_prompts(pipe: MotionControlPipeline, prompts: Sequence[str | None], options: Mapping[str, Any]) -> None:
    """Make the embeddings of all texts that drawings with these prompts need; a text encoder is read once for them.

    Args:
        pipe: What generates.
        prompts: Of drawings; None where one has none.
        options: Options of the pipeline's call; a `prompt` there is for all drawings.

    Raises:
        UserError: the base has nothing that reads them.
    """
    usual = pipe.usual_inputs()
    if PROMPT in usual and prompts:
        said = {options[PROMPT]} if PROMPT in options else {usual[PROMPT] if one is None else one for one in prompts}
        pipe.module.base.embed_text([*sorted(said), options.get(NEGATIVE, usual[NEGATIVE])])
