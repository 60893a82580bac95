"""`remoco sweep run | table | plot`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from remoco.common.errors import UserError, readable
from remoco.common.ray_connection import load
from remoco.common.whole_files import held, write_atomic, write_json
from remoco.sweep import results
from remoco.sweep.engine import run_trials
from remoco.sweep.figure import draw
from remoco.sweep.plan import Plan, Trial, as_range, points, read_plan, record, trials_of, unlike
from remoco.sweep.search import load_optuna, search
from remoco.sweep.trial import new_record, read_record, record_file


def run(sweep: str, out: str = "", set: Sequence[str] = (), seeds: int | None = None, ray: str = "local") -> int:
    """Run the trials of a sweep's YAML. The same command resumes after a kill and skips finished trials.

    Args:
        sweep: YAML file with configs and values; configs/sweep/ has some.
        out: Folder of the trials. Default: runs/sweeps/ and the name of the YAML.
        set: KEY=VALUE for every trial, or test.KEY=VALUE for its test; may be repeated.
        seeds: Number of trials of each point. Default: the YAML's.
        ray: Address of a Ray cluster; `auto` is the one this machine belongs to, `local` starts one here.

    Example:
        remoco sweep run configs/sweep/region_size.yaml --seeds 3
    """
    plan = read_plan(sweep, list(set), seeds)
    folder = Path(out or Path("runs", "sweeps", Path(sweep).stem)).resolve()
    load(ray)
    if plan.search == "tpe":
        load_optuna()
    wanted = record(plan)
    if (folder / results.PLAN).is_file() and (field := unlike(results.read_plan(folder), wanted)):
        raise UserError(f"--out {folder}: holds trials of a sweep with other {field}; give another folder")
    _check(plan, folder)
    with held(folder / ".lock") as mine:
        if not mine:
            raise UserError(f"--out {folder}: another sweep is running in it")
        write_json(folder / results.PLAN, wanted)
        if plan.search == "grid":
            _evaluate(plan, folder, ray, points(plan))
        else:
            search(plan, lambda drawn: _evaluate(plan, folder, ray, drawn))
    code = _show(folder)
    unfinished = any(result.state in ("waiting", "started") for result in results.read_results(folder, []))
    return 1 if unfinished else code  # a node was lost, or Ray could not start the trial there


def table(folder: str) -> int:
    """Print the points of a sweep with mean and deviation over the seeds; writes FOLDER/trials.csv and points.csv.

    Args:
        folder: Folder of a `remoco sweep run`.

    Example:
        remoco sweep table runs/sweeps/region_size
    """
    return _show(Path(folder))


def plot(folder: str) -> int:
    """Draw the metrics over the swept values; writes FOLDER/figure.png and figure.svg.

    Args:
        folder: Folder of a `remoco sweep run`.

    Example:
        remoco sweep plot runs/sweeps/region_size
    """
    problems: list[str] = []
    trial_results = results.read_results(Path(folder), problems)
    files = [Path(folder) / f"figure.{suffix}" for suffix in ("png", "svg")]
    plan = results.read_plan(Path(folder))
    ranged = as_range(next(iter(plan["values"].values())))
    draw(results.rows_of(trial_results), plan["metrics"], files, plan["label"], ranged[0] if ranged else None)
    _say(problems)
    print("\n".join(f"wrote {file}" for file in files))
    return 1 if problems else 0


def _check(plan: Plan, folder: Path) -> None:
    """Have the parser of a fit read every point: what it refuses is known before the first trial."""
    from remoco.training import refused

    names: dict[str, dict[str, str]] = {}
    for point in tqdm(points(plan), desc="checking", unit="point"):
        trial = trials_of(plan, point, folder)[0]
        if (other := names.setdefault(trial.name, point)) is not point:
            raise UserError(f"values: {other} and {point} have the same folder, {trial.name}; give them names")
        problem = refused(["fit", *trial.fit])
        if problem is None and trial.test and (problem := refused(["test", *trial.fit, *trial.test])):
            problem = f"test: {problem}"
        if problem:
            raise UserError(f"{trial.name.removesuffix('-seed_0')}: {problem}")


def _evaluate(plan: Plan, folder: Path, ray: str, drawn: list[dict[str, str]]) -> list[float | None]:
    """Run the trials of some points; each one's mean of the first metric over the seeds that finished."""
    trials = [trial for point in drawn for trial in trials_of(plan, point, folder)]
    left = list({trial.name: trial for trial in trials if not _finished(folder, trial)}.values())
    if done := len(trials) - len(left):
        print(f"{done} of {len(trials)} trials are finished already")
    for trial in left:
        if read_record(folder, trial.name) is None:
            record_file(folder, trial.name).parent.mkdir(parents=True, exist_ok=True)
            write_json(record_file(folder, trial.name), new_record(trial))
    if left:
        run_trials(left, plan, folder, ray)
    return [_value(plan, folder, trials_of(plan, point, folder)) for point in drawn]


def _finished(folder: Path, trial: Trial) -> bool:
    return (read_record(folder, trial.name) or {}).get("state") == "finished"


def _value(plan: Plan, folder: Path, trials: list[Trial]) -> float | None:
    trial_results = [result for trial in trials if (result := results.read_result(folder, trial.name, []))]
    mean = results.rows_of(trial_results)[0].mean
    names = results.chosen(list(mean), plan.metrics[:1])
    return mean[names[0]] if names else None


def _show(folder: Path) -> int:
    """Print and write the tables; 1 where a trial failed, or something of it cannot be used."""
    problems: list[str] = []
    trial_results = results.read_results(folder, problems)
    rows = results.rows_of(trial_results)
    write_atomic(folder / "trials.csv", results.trials_csv(trial_results).encode())
    write_atomic(folder / "points.csv", results.points_csv(rows).encode())
    wanted = results.read_plan(folder)["metrics"]
    print(results.terminal_table(rows, wanted))
    if any(row.seeds for row in rows) and not any(results.chosen(list(row.mean), wanted) for row in rows):
        print(f"no trial has a result named {', '.join(wanted)}")
    failed = [result for result in trial_results if result.state == "failed"]
    for result in failed:
        print(f"{readable(result.name)} failed: {readable(result.error or 'it left no reason')}")
    if unfinished := sum(result.state in ("waiting", "started") for result in trial_results):
        print(f"{unfinished} of {len(trial_results)} trials are not finished")
    _say(problems)
    print(f"wrote {folder / 'trials.csv'} and {folder / 'points.csv'}")
    return 1 if failed or problems else 0


def _say(problems: list[str]) -> None:
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
