"""Trials on one machine or a cluster, by Ray Tune: it places them on CPUs and GPUs and retries what is killed."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.prepare.video import cores
from remoco.common.errors import UserError
from remoco.common.ray_connection import connected, set_up
from remoco.sweep.plan import Plan, Trial
from remoco.sweep.trial import last_line, log_file, perform, read_record

ATTEMPTS = 3  # more, after a kill
REFRESH = 2.0  # seconds
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # a banner that `verbose=0` does not stop
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs have loggers of their own
    "RAY_worker_niceness": "0",  # Ray's own default, 15, is for workers that must not slow its services
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted sweep ends at once; its runs go on from their checkpoints
}


def load_tune(address: str) -> Any:
    """Ray Tune, for a cluster at this address.

    Raises:
        UserError: it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    set_up(address)
    try:
        from ray import tune
    except ImportError:
        raise UserError("a sweep needs Ray Tune: pip install -e '.[sweep]' -c constraints.txt") from None
    return tune


def run_trials(trials: list[Trial], plan: Plan, out: Path, address: str) -> list[str]:
    """Run trials side by side, as many as there is room for; each leaves its record in the folder.

    Args:
        trials: to run.
        plan: for what a trial takes.
        out: the sweep's folder, which all machines see.
        address: of a Ray cluster: `auto`, HOST:PORT, or `local` to start one here.

    Returns:
        What Ray Tune itself reports: a lost node, a machine without the package; a line each.
    """
    tune = load_tune(address)
    with connected(address, workers=cores()) as ray, _progress(trials, out):
        gpus = plan.gpus if plan.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
        if not any(node["Alive"] and _fits(node["Resources"], plan.cpus, gpus) for node in ray.nodes()):
            raise UserError(
                f"a trial takes {plan.cpus} CPUs and {gpus:g} GPUs, and no machine of --ray {address} has them"
            )
        work = tune.with_parameters(_work, trials=trials, out=str(out), cwd=os.getcwd())
        tuner = tune.Tuner(
            tune.with_resources(work, {"cpu": plan.cpus, "gpu": gpus}),
            param_space={"index": tune.grid_search(list(range(len(trials))))},
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(out / ".ray"),
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
                verbose=0,
            ),
        )
        errors = [str(error).strip().splitlines()[-1] for error in tuner.fit().errors if str(error).strip()]
    return list(dict.fromkeys(errors))


def _fits(resources: dict[str, float], cpus: int, gpus: float) -> bool:
    return resources.get("CPU", 0) >= cpus and resources.get("GPU", 0) >= gpus


def _work(config: dict[str, Any], trials: list[Trial], out: str, cwd: str) -> dict[str, Any]:
    """What Tune calls, on the node that it chose."""
    found = perform(trials[config["index"]], Path(out), Path(cwd))
    return {"finished": int(found["state"] == "finished")}


@contextmanager
def _progress(trials: list[Trial], out: Path) -> Iterator[None]:
    """A bar over the trials: a line for each that finished or failed, and how far the running ones are."""
    over = threading.Event()
    left = {trial.name: log_file(out, trial.name) for trial in trials}
    said = {name: (read_record(out, name) or {}).get("attempts", 0) for name in left}  # attempts that were reported on
    with tqdm(total=len(trials), desc="trials", unit="trial") as bar:

        def look() -> None:
            running = []
            for name in list(left):
                found = read_record(out, name) or {"state": "waiting"}
                if found["state"] == "finished":
                    bar.update()
                    bar.write(f"{name}: finished in {found['seconds']:.0f} s")
                    del left[name]
                elif found["state"] == "failed" and found["attempts"] > said[name]:
                    said[name] = found["attempts"]
                    bar.write(f"{name}: {found['error']}")
                elif found["state"] == "started":
                    steps = re.findall(r"\b\d+/\d+\b", last_line(left[name]))
                    running.append(f"{name} {steps[-1] if steps else 'starts'}")
            bar.set_postfix_str(" | ".join(running)[:100])

        def watch() -> None:
            while not over.wait(REFRESH):
                look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()
