"""Trials on one machine or a cluster: Ray places them on CPUs and GPUs, and what is killed is started again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from remoco.common.errors import UserError, readable
from remoco.common.machine import cores
from remoco.common.ray_connection import connected
from remoco.sweep.plan import Plan, Trial
from remoco.sweep.trial import PATIENCE, Killed, last_line, log_file, perform, read_record

ATTEMPTS = 3  # more, after a kill
REFRESH = 2.0  # seconds


def run_trials(trials: list[Trial], plan: Plan, out: Path, address: str) -> None:
    """Run trials side by side, as many as there is room for; each leaves its record in the folder.

    Args:
        trials: to run.
        plan: the sweep, which says what CPUs and GPUs a trial takes.
        out: the sweep's folder, which all machines see.
        address: of a Ray cluster: `auto`, HOST:PORT, or `local` to start one here.

    Raises:
        UserError: Ray is not installed, the cluster is not reached, or none of its machines has room for a trial.
    """
    with connected(address, workers=cores()) as ray:
        gpus = plan.gpus if plan.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        if not any(node["Alive"] and _fits(node["Resources"], plan.cpus, gpus) for node in ray.nodes()):
            raise UserError(
                f"a trial takes {plan.cpus} CPUs and {gpus:g} GPUs, and no machine of --ray {address} has them"
            )
        work = ray.remote(num_cpus=plan.cpus, num_gpus=gpus, max_retries=0)(perform)
        here = Path.cwd()
        with tqdm(total=len(trials), desc="trials", unit="trial") as bar:
            _run(ray, lambda trial: work.remote(trial, out, here), trials, _Progress(bar, trials, out))


def _fits(resources: dict[str, float], cpus: int, gpus: float) -> bool:
    return resources.get("CPU", 0) >= cpus and resources.get("GPU", 0) >= gpus


def _run(ray: Any, start: Callable[[Trial], Any], trials: list[Trial], progress: _Progress) -> None:
    """Wait for all; one that was killed, with its process or its node, is started again.

    Ray's own retries would not do: those of what it kills for want of memory have no end.
    """
    left = {start(trial): (trial, ATTEMPTS) for trial in trials}
    try:
        while left:
            for reference in ray.wait(list(left), num_returns=len(left), timeout=REFRESH)[0]:
                trial, more = left.pop(reference)
                try:
                    ray.get(reference)
                except (Killed, ray.exceptions.RayError) as error:
                    if not isinstance(error, Killed):  # which its record says
                        progress.say(_reason(ray, error))
                    if more:
                        left[start(trial)] = trial, more - 1
            progress.look()
    except KeyboardInterrupt:
        progress.say("stopping: running trials save first; press Ctrl-C again to end at once")
        for reference in reversed(left):  # so that none begins where another ended
            ray.cancel(reference)
        if left:
            ray.wait(list(left), num_returns=len(left), timeout=PATIENCE)
        raise


def _reason(ray: Any, error: Exception) -> str:
    """In a line: a lost node, a machine without the package."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "Ray: " + readable(lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0])


class _Progress:
    """A bar over the trials: a line for each that finished or failed, and how far the running ones are."""

    def __init__(self, bar: tqdm, trials: list[Trial], out: Path) -> None:
        self._bar, self._out = bar, out
        # name -> attempts of which the failure was reported
        self._left = {trial.name: (read_record(out, trial.name) or {}).get("attempts", 0) for trial in trials}
        self._said: set[str] = set()

    def look(self) -> None:
        """Read the records of what has not finished."""
        running = []
        for name, reported in list(self._left.items()):
            record = read_record(self._out, name) or {"state": "waiting"}
            if record["state"] == "finished":
                self._bar.update()
                self._bar.write(f"{name}: finished in {record['seconds']:.0f} s")
                del self._left[name]
            elif record["state"] == "failed" and record["attempts"] > reported:
                self._left[name] = record["attempts"]
                self._bar.write(f"{name}: {record['error']}")
            elif record["state"] == "started":
                steps = re.findall(r"\b\d+/\d+\b", last_line(log_file(self._out, name)))
                running.append(f"{name} {steps[-1] if steps else 'starts'}")
        self._bar.set_postfix_str(" | ".join(running)[:100])

    def say(self, line: str) -> None:
        """Write a line above the bar, once."""
        if line not in self._said:
            self._said.add(line)
            self._bar.write(line)
