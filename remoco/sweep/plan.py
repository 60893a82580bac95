"""What a sweep's YAML says, and the trials that follow from it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from remoco import configs
from remoco.common.errors import UserError, readable
from remoco.flags import Raising, Unparsed
from remoco.near import hint
from remoco.run_name import NAME, shortened

SAVE_DIR = "trainer.logger.init_args.save_dir"
SEEDS = ("model.init_args.seed", "data.init_args.seed")
BASE = "model.init_args.base"
BASE_SEED = f"{BASE}.init_args.init_seed"  # of bases that draw their first weights
RANGES = ("uniform", "log_uniform", "integers")
TEST = "test."
MAX_TRIALS = 10_000
RAW = ("values", "set")  # for the parser of a fit: this one would complete what names a class


@dataclass
class Plan:
    """A sweep: what its trials have in common, and what differs.

    Args:
        configs: Configuration files of every fit, as several `--config`.
        values: Key of the configuration -> its values: a list, names -> values, or for a search also a range, one of
            {uniform: [low, high]}, {log_uniform: [low, high]} and {integers: [low, high]}.
        set: Key -> value for every trial; a key that begins with `test.` is for the test alone.
        test: Configuration files over the run's own for its test.
        seeds: Every trial runs with the seeds 0, 1, ... of the module, a random base's and of the data's order.
        metrics: What table and figure show: names of results, or how they begin; the first is what a search minimises.
        search: `grid` tries every combination, `random` and `tpe` (of Optuna) draw `trials` points.
        trials: Points of a search.
        label: What the figure calls the first of the values' keys.
        cpus: CPUs of a trial.
        gpus: GPUs of a trial, or a part of one that several share; by default 1 where there are any.
    """

    configs: list[str]
    values: dict[str, Any]
    set: dict[str, Any] = field(default_factory=dict)
    test: list[str] = field(default_factory=list)
    seeds: int = 3
    metrics: list[str] = field(default_factory=lambda: ["control_error_stroke"])
    search: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 20
    label: str | None = None
    cpus: int = 1
    gpus: float | None = None


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: Of its folder.
        point: What differs, by key, as text.
        seed: Its number among the trials of the point.
        fit: Options of `python -m lightning fit`.
        test: Options of `python -m lightning test`, besides the run's own configuration.
    """

    name: str
    point: dict[str, str]
    seed: int
    fit: list[str]
    test: list[str]


def read_plan(file: str, changes: list[str], seeds: int | None) -> Plan:
    """The plan of a YAML, with what the command line changes.

    Raises:
        UserError: not a sweep; the line names the field.
    """
    path = Path(configs.resolved(["--config", file])[1])
    if not path.exists():
        raise UserError(f"{file}: no such file, expected a sweep's YAML")
    entries = configs.load(path, "sweep")
    if not isinstance(entries, dict):
        raise UserError(f"{file}: expected a mapping with configs and values")
    known = [each.name for each in fields(Plan)]
    if unknown := [name for name in entries if name not in known]:
        near = hint(str(unknown[0]), known)
        raise UserError(f"{file}: {unknown[0]}: no such field, expected some of {', '.join(known)}{near}")
    parser = Raising()
    parser.add_class_arguments(Plan, skip=set(RAW))
    try:
        raw = {name: entries.pop(name, {}) for name in RAW}
        plan = Plan(**parser.parse_object(entries).as_dict(), **raw)
        if seeds is not None and not 1 <= seeds <= MAX_TRIALS:
            raise UserError(f"--seeds {seeds}: expected at least 1, at most {MAX_TRIALS}")
        plan.seeds = plan.seeds if seeds is None else seeds
        _check(plan)
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals or not key:
                raise UserError(f"--set {change}: expected KEY=VALUE")
            if key in plan.values:
                raise UserError(f"--set {key}: the sweep varies this key")
            plan.set[key] = _value(key, value)
        _check_keys(plan)
    except (Unparsed, UserError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
    for name in ("configs", "test"):
        listed = getattr(plan, name)
        setattr(plan, name, [_existing(file, name, each) for each in listed])
    return plan


def _existing(file: str, name: str, config: str) -> str:
    path = Path(configs.resolved(["--config", config])[1])
    if not path.is_file():
        raise UserError(f"{file}: {name}: no file {readable(str(config))}")
    return str(path.resolve())


def _check(plan: Plan) -> None:
    if not plan.configs:
        raise UserError("configs: empty, expected the configuration files of a fit")
    for name in RAW:
        if not isinstance(getattr(plan, name), dict):
            raise UserError(f"{name}: expected a mapping, got {getattr(plan, name)!r}")
        if odd := [key for key in getattr(plan, name) if not isinstance(key, str)]:
            raise UserError(f"{name}: {odd[0]!r}: expected a key of the configuration")
        for key, value in getattr(plan, name).items():
            try:
                json.dumps(value)
            except TypeError as error:  # YAML has dates and bytes too
                raise UserError(f"{name}.{key}: {error}; expected numbers, texts, lists and mappings") from None
    if not plan.values:
        raise UserError("values: empty, expected keys of the configuration with their values")
    for key, values in plan.values.items():
        if not isinstance(values, (list, dict)):
            raise UserError(f"values.{key}: expected a list or a mapping, got {values!r}")
        if not values:
            raise UserError(f"values.{key}: empty, expected at least one value")
        if drawn := as_range(values):
            kind, low, high = drawn
            if plan.search == "grid":
                raise UserError(f"values.{key}: a range needs `search: random` or `search: tpe`")
            if not low < high or not math.isfinite(high - low) or (kind == "log_uniform" and low <= 0):
                raise UserError(f"values.{key}: expected {kind}: [low, high], got [{low:g}, {high:g}]")
    for name, least, most in (
        ("seeds", 1, MAX_TRIALS), ("trials", 1, MAX_TRIALS), ("cpus", 1, 4096), ("gpus", 0, 4096)
    ):  # fmt: skip
        if (value := getattr(plan, name)) is not None and not least <= value <= most:
            raise UserError(f"{name}: {value:g}, expected {least} to {most}")
    if plan.gpus and plan.gpus > 1 and plan.gpus % 1:
        raise UserError(f"gpus: {plan.gpus:g}, expected a part of one or a whole number")
    count = plan.trials if plan.search != "grid" else math.prod(len(values) for values in plan.values.values())
    if count * plan.seeds > MAX_TRIALS:
        raise UserError(f"values: {count} points with {plan.seeds} seeds each, expected at most {MAX_TRIALS} trials")
    if not plan.metrics:
        raise UserError("metrics: empty, expected names of results")


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError):  # an invalid date or number; nested too deeply
        raise UserError(f"--set {key}: not a value: {text[:40]}") from None


def _check_keys(plan: Plan) -> None:
    for name in RAW:
        for key in getattr(plan, name):
            if key.removeprefix(TEST) in (SAVE_DIR, NAME):
                raise UserError(f"{name}.{key}: a trial's folder is OUT/NAME; --out sets the first")
    for key, other in itertools.permutations(plan.values, 2):
        if other.startswith(f"{key}."):
            raise UserError(f"values.{other}: is part of values.{key}, which sets it too")


def as_range(values: Any) -> tuple[str, float, float] | None:
    """(kind, low, high) of a range; None for values that are listed.

    Raises:
        UserError: a range without two numbers.
    """
    if not isinstance(values, dict) or len(values) != 1 or (kind := next(iter(values))) not in RANGES:
        return None
    try:
        low, high = (float(each) for each in values[kind] if isinstance(each, (int, float)))
        whole = kind != "integers" or (int(low), int(high)) == (low, high)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise UserError(f"values: {kind}: expected [low, high], got {str(values[kind])[:80]}")
    return kind, low, high


def named(values: Any) -> dict[str, Any]:
    """Name -> value of values that are listed; a range has its ends."""
    if drawn := as_range(values):
        kind, *ends = drawn
        return {text(end): end for end in (map(int, ends) if kind == "integers" else ends)}
    return {str(name): value for name, value in values.items()} if isinstance(values, dict) else {
        text(value): value for value in values
    }  # fmt: skip


def points(plan: Plan) -> list[dict[str, str]]:
    """Every combination of the values' names."""
    chosen = [named(values) for values in plan.values.values()]
    return [dict(zip(plan.values, names)) for names in itertools.product(*chosen)]


def trials_of(plan: Plan, point: dict[str, str], out: Path) -> list[Trial]:
    """The trials of a point, one for each seed.

    Args:
        plan: the sweep.
        point: key -> name of its value, or the value as text.
        out: the sweep's folder.
    """
    tails = [_tail(key) for key in point]
    parts = [f"{tail if tails.count(tail) == 1 else key}_{name}" for (key, name), tail in zip(point.items(), tails)]
    base = shortened("-".join(parts))
    swept = [option(key, named(plan.values[key]).get(name, name)) for key, name in point.items()]
    common = [option(key, value) for key, value in plan.set.items() if not key.startswith(TEST)]
    test = [option(key.removeprefix(TEST), value) for key, value in plan.set.items() if key.startswith(TEST)]
    keys = (*SEEDS, BASE_SEED) if _draws_weights(plan, point) else SEEDS
    trials = []
    for seed in range(plan.seeds):
        name = f"{base}-seed_{seed}"
        seeds = [option(key, seed) for key in keys if key not in point and key not in plan.set]
        place = [option(SAVE_DIR, str(out)), option(NAME, name)]
        fit = [*(f"--config={config}" for config in plan.configs), *common, *swept, *seeds, *place]
        trials.append(Trial(name, point, seed, fit, [*(f"--config={config}" for config in plan.test), *test]))
    return trials


def _draws_weights(plan: Plan, point: dict[str, str]) -> bool:
    """Whether the base of a point takes a seed of its first weights: its configuration has one, or its class."""
    bases = [_base_of(path) for config in plan.configs for path in configs.layers(config)] + [plan.set.get(BASE)]
    if BASE in point:
        bases.append(named(plan.values[BASE]).get(point[BASE]))
    base = next((each for each in reversed(bases) if isinstance(each, dict) and "class_path" in each), {})
    return "init_seed" in (base.get("init_args") or {}) or _takes_seed(str(base.get("class_path", "")))


@functools.cache
def _base_of(config: Path) -> Any:
    """What a configuration file has at `BASE`, if anything."""
    value = configs.load(config, "configs")
    for part in BASE.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@functools.cache
def _takes_seed(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return "init_seed" in inspect.signature(getattr(import_module(module), name)).parameters
    except Exception:  # what cannot be imported is what the parser of a fit refuses, and says why
        return False


def _tail(key: str) -> str:
    return re.sub(r"\.(init_args|class_path|dict_kwargs)\b", "", key).split(".")[-1]


def option(key: str, value: Any) -> str:
    """`--KEY=VALUE`, as the parser of a fit reads it."""
    return f"--{key}={text(value)}"


def text(value: Any) -> str:
    """A value as it is written on a command line: JSON, but strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def record(plan: Plan) -> dict[str, Any]:
    """What the folder keeps of a plan, with the contents of its configuration files by their hash."""
    files = [path for config in [*plan.configs, *plan.test] for path in configs.layers(config)]
    return {**asdict(plan), "files": {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}


def unlike(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first thing in which two records' trials would not be comparable; more values, seeds or trials are fine."""
    for name in ("configs", "set", "test", "files"):
        if old.get(name) != new[name]:
            return name
    before, after = old.get("values", {}), new["values"]
    if list(before) != list(after):
        return "values"
    for key in after:  # a name that means something else now: its finished trials would be taken for the new ones
        was, now = named(before[key]), named(after[key])
        if any(was[name] != now[name] for name in was.keys() & now.keys()):
            return f"values.{key}"
    return None
