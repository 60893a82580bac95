"""Under SLURM the processes of a run are started by srun; what happens without it is said before it happens."""

import os
import shutil
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

OF_A_TASK = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")  # what Lightning reads in each process
ALONE = "SLURM_JOB_NAME=interactive"  # by which Lightning knows that a person works in an allocation


def slurm_without_srun(plugins: Any = None) -> str | None:
    """One line where Lightning would take this process for one of several that SLURM started, and is wrong; else None.

    Lightning goes by `SLURM_NTASKS`, which a batch script and `salloc` have too: with several tasks it would wait for
    processes that nobody started.

    Args:
        plugins: the trainer's as configured; one that is a cluster environment decides in Lightning's place.
    """
    named = plugins if isinstance(plugins, list) else [plugins]
    paths = [str(getattr(each, "class_path", each)) for each in named if each is not None]
    if any(path.endswith("Environment") for path in paths) or TorchElasticEnvironment.detect():
        return None
    if "SLURM_NTASKS" not in os.environ or SLURMEnvironment.job_name() in ("bash", "interactive"):
        return None
    tasks = os.environ["SLURM_NTASKS"]
    started = any(name.startswith(("SLURM_STEP", "SLURM_SRUN")) for name in os.environ)
    if tasks.isdecimal() and all(name in os.environ for name in OF_A_TASK) and (started or tasks == "1"):
        if tasks == "1" or "SLURM_NTASKS_PER_NODE" in os.environ:
            return None
        return f"SLURM_NTASKS is {tasks} without SLURM_NTASKS_PER_NODE; ask SLURM for --ntasks-per-node, not --ntasks"
    hint = "put srun before the command" if shutil.which("srun") else "start it with srun"
    return (
        f"SLURM_NTASKS is {tasks}, but srun did not start this process; {hint}, or, for a run of this process alone, "
        f"{ALONE}"
    )
