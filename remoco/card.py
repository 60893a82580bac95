"""`remoco card`: a run's controller as a folder that others can load, with its card, here or on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from remoco.common.errors import UserError, readable


def card(
    run: str,
    out: str | None = None,
    checkpoint: str = "last",
    name: str | None = None,
    license: str | None = None,  # noqa: A002
    base_license: str | None = None,
    data_license: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Write a run's controller as a folder that others can load, with its card; --push also uploads it to the hub.

    The card has what the controller is, the numbers of metrics.json, the last samples and the licences.

    Args:
        run: The run's folder, with checkpoints/.
        out: New folder. Default: the run's name with -card.
        checkpoint: Name of the checkpoint in checkpoints/, for example `best`. The averaged weights are taken where
            the run kept them.
        name: What the card calls it. Default: the run's name.
        license: Of the controller, an identifier as the hub's cards have it, for example apache-2.0.
        base_license: Of the base. Default: what the card in the base's folder says.
        data_license: Of the training data, in a few words.
        push: Hub id owner/name to upload the folder to, made if it is not there. All three licences must be known.
        private: Make it a private one.

    Example:
        remoco card runs/remoco --license apache-2.0 --data-license "own videos" --push owner/controller
    """
    from remoco.card_text import HUB_ID, Licences, base_licence, public
    from remoco.card_text import card as text_of

    source = Path(run)
    file = source / "checkpoints" / f"{checkpoint}.ckpt"
    if not source.is_dir() or not file.is_file():
        raise UserError(f"{file}: no such file, expected the folder of a run with that checkpoint")
    target = Path(out or f"{source.resolve().name}-card")
    if os.path.lexists(target):
        raise UserError(f"--out {target}: exists already, expected a new folder")
    if push is not None and not HUB_ID.fullmatch(push):
        raise UserError(f"--push is {push!r:.80}, expected a hub id owner/name")
    if private and push is None:
        raise UserError("--private: expected --push beside it")
    licences = Licences(license, base_license, data_license)

    from lightning_modules.pipeline_files import write_folder
    from lightning_modules.resumed import KEY
    from remoco.common.whole_files import new_folder
    from remoco.result_files import read_results

    record, steps, state = _read(file)
    licences = Licences(license, base_license or base_licence(record["base"]), data_license)
    if push is not None and (missing := licences.missing()):
        raise UserError(f"--push {push}: expected {', '.join(missing)}, which nobody stated")
    problems: list[str] = []
    results = read_results(source / "metrics.json", problems)
    with new_folder(target) as folder:
        kept = {key: value for key, value in public(record).items() if key != KEY}
        write_folder(folder, state, set(), kept, {}, None)
        pictures = _pictures(source, folder, problems)
        parameters = sum(tensor.numel() for tensor in state.values())
        text = text_of(
            name or source.resolve().name, push or str(target), record, parameters, steps, results, pictures, licences
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
    for problem in problems:
        print(f"left out: {problem}")
    print(f"wrote {target}: step {steps}, {len(results)} numbers, {len(pictures)} pictures")
    if missing := licences.missing():
        print(f"its card says `not stated` of {', '.join(missing)}")
    if push is not None:
        from lightning_modules.hub import upload

        try:
            print(f"uploaded {upload(target, push, private, f'{source.resolve().name}, step {steps}')}")
        except UserError as error:
            flag = " --private" if private else ""
            raise UserError(f"{error}; `hf upload {push} {target}{flag}` goes on from here") from error


def _read(file: Path) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Record, step and tensors of a checkpoint, the averaged weights where they are there."""
    from lightning_modules import checkpoint as checkpoints
    from lightning_modules.record_values import SAMPLING, check_fields, whole
    from lightning_modules.restorable import average_of, check_tensors

    saved = checkpoints.read_checkpoint(file)
    record = checkpoints.of(saved, str(file))
    if record["architecture"].get("injection", "") is None:
        raise UserError(f"{file}: holds a base without a controller; `remoco export-base` writes it as folders")
    arguments = record["base"].get("init_args")
    if "class_path" not in record["base"] or not isinstance(arguments, dict):
        raise UserError(f"{file}: base: expected a class path with arguments")
    if not isinstance(arguments.get("path"), str | None):
        raise UserError(f"{file}: base.path: expected a folder or a hub id")
    check_fields(record.get("sampling") or {}, "sampling", SAMPLING, str(file))
    steps: Any = saved.get("global_step", 0)
    state: Any = saved.get("state_dict")
    if not whole(0, 2**63 - 1)(steps):
        raise UserError(f"{file}: global_step: expected a whole number of steps")
    try:
        check_tensors(state)
        return record, steps, state | average_of(saved)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _pictures(run: Path, folder: Path, problems: list[str]) -> dict[str, str]:
    """Caption -> file in `folder`: the sheet of the last samples that a run has, as a picture of ours.

    It is read and written anew. A copy would also be of what is no picture: a run's folder may come from anybody, with
    a link to a private file in the sheet's place.
    """
    from callbacks.strips import write_png
    from remoco.common.picture_files import read_image
    from remoco.report.collect import last_strips

    strips, step = last_strips(run / "samples", problems)
    for strip in strips[:1]:
        sheet = strip.with_name("sheet.png")
        if not os.path.lexists(sheet):
            continue
        try:
            if not sheet.resolve().is_relative_to(run.resolve()):
                raise UserError(f"{sheet}: lies outside of the run")
            write_png(folder / "samples.png", read_image(sheet))
        except UserError as error:
            problems.append(readable(str(error)))
        else:
            return {f"Samples of validation clips at step {step}": "samples.png"}
    return {}
