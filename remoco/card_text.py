"""The card of a controller: what it is, its numbers and a picture of it, and whose licences it stands under."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from remoco.common.errors import UserError, readable
from remoco.common.json_files import open_regular

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")  # an identifier as the hub's cards have it, for example apache-2.0
MAX_README = 1 << 20  # bytes
NOT_STATED = "not stated"
SUFFIX = "_random_features"  # of metrics whose network is random


@dataclass(frozen=True)
class Licences:
    """Under what a controller, its base and its training data are given; None where nobody said.

    Attributes:
        controller: An identifier as the hub's cards have it, for example `apache-2.0`, or `other`.
        base: Of the base, in a few words.
        data: Of the training data, in a few words.
    """

    controller: str | None
    base: str | None
    data: str | None

    def __post_init__(self) -> None:
        if self.controller is not None and not LICENCE.fullmatch(self.controller):
            raise UserError(
                f"--license is {self.controller!r:.60}, expected an identifier as the hub's cards have it, for example "
                "apache-2.0, or other"
            )
        for name, text in (("base-license", self.base), ("data-license", self.data)):
            if text is not None and not (0 < len(text) <= 300 and text.isprintable()):
                raise UserError(f"--{name}: expected one line of 1 to 300 characters")

    def missing(self) -> list[str]:
        """Flags of those that nobody stated."""
        named = {"--license": self.controller, "--base-license": self.base, "--data-license": self.data}
        return [flag for flag, text in named.items() if text is None]


def base_licence(base: Mapping[str, Any]) -> str | None:
    """What is known of a base's licence: what the card in its folder says, or that its weights are nobody else's.

    Args:
        base: Of the record. A hub id is not asked.
    """
    path = base["init_args"].get("path")
    if path is None:
        return "none of its own: its weights were drawn at random"
    try:
        with open_regular(Path(path) / "README.md") as file:
            head = re.match(r"---\r?\n(.*?)\r?\n---", file.read(MAX_README).decode(errors="replace"), re.DOTALL)
        said = yaml.safe_load(head[1]) if head else None
    except (OSError, TypeError, ValueError, yaml.YAMLError, UserError):
        return None
    words = [said.get(key) for key in ("license", "license_name", "license_link")] if isinstance(said, dict) else []
    told = [word for word in words if isinstance(word, str) and 0 < len(word) <= 90 and word.isprintable()]
    return ", ".join(told) or None


def card(
    name: str,
    repo: str,
    record: Mapping[str, Any],
    parameters: int,
    steps: int,
    results: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, str],
    licences: Licences,
) -> str:
    """The text of a card, Markdown below the metadata that the hub reads.

    Args:
        name: What the controller is called.
        repo: Where it can be loaded from: a hub id or a folder.
        record: Its checkpoint's record.
        parameters: Number of values in its file.
        steps: Training steps.
        results: As `remoco.result_files.read_results` returns them.
        pictures: Caption -> file beside the card.
        licences: Under what it is given.
    """
    base = record["base"]
    path = base["init_args"].get("path")
    lines = ["---", yaml.safe_dump(_metadata(record, path, licences), sort_keys=False, allow_unicode=True).strip()]
    lines += ["---", "", f"# {_inline(name)}", ""]
    whole = bool(record.get("whole"))
    kind = "with its base, a" if record["architecture"].get("train_base") else "over a frozen"
    shown = f" `{_code(_public(path))}`" if path else ""
    about = f"trained with ReMoCo for {steps:,} steps {kind} {_class(base)}" + shown
    alone = "This is the controller; the base is loaded from where you name it." if path and not whole else ""
    lines += [f"Region-wise motion control of image-to-video diffusion, {about}.", *([alone] if alone else []), ""]
    for caption, file in pictures.items():
        lines += [f"![{_inline(caption)}]({file})", "", f"*{_inline(caption)}*", ""]
    given = "" if whole or not path else f', svd="{_code(_public(path))}"'
    lines += [
        "## Use", "", "```python", "from remoco import MotionControlPipeline", "",
        f'pipe = MotionControlPipeline.from_pretrained("{_code(repo)}"{given})',
        "frames = pipe(image, tracks=[[(40, 64), (88, 64)]], brush=mask, seed=1).frames[0]", "```", "",
        f"    remoco generate {_code(repo)} --help", "",
    ]  # fmt: skip
    lines += ["## What it is", "", "| | |", "|---|---|"]
    lines += [f"| {label} | {_cell(text)} |" for label, text in _facts(record, parameters).items()] + [""]
    lines += ["## Numbers", ""] + (_numbers(results) if results else ["None were measured."]) + [""]
    if any(metric.endswith(SUFFIX) for metric in results):
        lines += [
            "Metrics with `random_features` compare runs of this project; they are not the published metrics.",
            "",
        ]
    lines += [
        "## Licences", "", "| of | |", "|---|---|",
        f"| this controller | {licences.controller or NOT_STATED} |",
        f"| the base | {_cell(licences.base or NOT_STATED)} |",
        f"| the training data | {_cell(licences.data or NOT_STATED)} |", "",
    ]  # fmt: skip
    return "\n".join(lines)


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without what says where on somebody's disk the base was; a folder keeps its last name."""
    base = record["base"]
    arguments = {key: _public(value) if isinstance(value, str) else value for key, value in base["init_args"].items()}
    return {**record, "base": {**base, "init_args": arguments}}


def _public(path: str) -> str:
    hub = HUB_ID.fullmatch(path) and not path.startswith(".") and not Path(path).exists()
    return path if hub else Path(path).name


def _metadata(record: Mapping[str, Any], path: Any, licences: Licences) -> dict[str, Any]:
    known = isinstance(path, str) and _public(path) == path and "/" in path
    data: dict[str, Any] = {"license": licences.controller} if licences.controller else {}
    data |= {"library_name": "remoco", "pipeline_tag": "image-to-video"}
    if known:
        data |= {"base_model": path, "base_model_relation": "adapter"}
    lora = ["lora"] if record["architecture"].get("lora") else []
    return data | {"tags": ["motion-control", "image-to-video", *lora]}


def _facts(record: Mapping[str, Any], parameters: int) -> dict[str, str]:
    architecture, sampling = record["architecture"], record.get("sampling") or {}
    condition = architecture["condition"]
    settings = ", ".join(f"{name} {value}" for name, value in condition.get("init_args", {}).items())
    lora = architecture.get("lora")
    low_high = sampling.get("guidance") or [1.0, 1.0]
    facts = {
        "base": f"{_class(record['base'])}, weights {record['base']['hash'][:12]}",
        "condition": f"{condition['class_path'].rpartition('.')[2]}, {settings}",
        "injection": ", ".join(architecture.get("injection") or []) or "none",
        "LoRA": f"{lora} layers, rank {architecture['lora_rank']}" if lora else "none",
        "values in the file": f"{parameters:,}",
    }
    if "num_frames" in sampling:
        facts["clips"] = f"{sampling['num_frames']} frames of {sampling.get('height')} x {sampling.get('width')}"
    if "steps" in sampling:
        facts["sampler"] = f"{sampling['steps']} steps, guidance {low_high[0]:g} to {low_high[1]:g}"
    if record.get("trained_on"):
        facts["the base was trained on"] = str(record["trained_on"])
    return facts


def _numbers(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = ["| metric | value | clips | protocol |", "|---|---|---|---|"]
    for name, entry in results.items():
        clips = f"{entry['n']:g}" if "n" in entry else ""
        rows.append(f"| {_cell(name)} | {entry['value']:.5g} | {clips} | {_cell(entry['protocol'])} |")
    return rows


def _class(base: Mapping[str, Any]) -> str:
    return _inline(str(base.get("class_path", "base")).rpartition(".")[2])


def _cell(text: str) -> str:
    return _inline(text).replace("|", "\\|")


def _code(text: str) -> str:
    """Text from a file as one line within code and quotes, which it cannot end; there nothing is escaped."""
    return re.sub(r"[`\"\\]", "'", readable(" ".join(str(text).split())))


def _inline(text: str) -> str:
    """Text from a file as one line in which Markdown finds no tag, picture or link."""
    return re.sub(r"([<>\[\]`])", r"\\\1", readable(" ".join(str(text).split())))
