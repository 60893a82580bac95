"""The pool's tasks on the machines of a Ray cluster: the same functions, the same bytes.

All machines must see the videos and the shards' folder under the same paths, and have this package installed. A task
runs in a process of its own on the node, as the pool's do, so that a decoder that crashes or hangs costs its video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from datamodules.prepare import pool
from remoco.common.errors import UserError
from remoco.common.ray_connection import connected

IN_FLIGHT = 2  # tasks per CPU of the cluster: one that runs and one that waits


def run(
    function: pool.Function, tasks: Iterable[Any], address: str, workers: int, gpus: int = 0
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result or pool.Died) as they finish.

    Args:
        function: as `pool.run`'s; the number is 0, since a Ray worker sees the GPU it was given alone.
        tasks: taken as the cluster gets free.
        address: address of the cluster: `auto` for this machine's, HOST:PORT, or `local` to start one here.
        workers: CPUs of a cluster started here.
        gpus: GPUs that a task needs.

    Raises:
        UserError: Ray is not installed, the cluster is not reached, or a node cannot run the task.
    """
    with connected(address, workers) as ray:
        yield from _run(ray, function, tasks, gpus)


def _run(ray: Any, function: pool.Function, tasks: Iterable[Any], gpus: int) -> Iterator[tuple[Any, Any]]:
    # a node that is lost is Ray's to retry; a process that dies on a video is reported, not retried
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_do)
    queue = iter(tasks)
    running: dict[Any, Any] = {}
    try:
        while True:
            room = IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
            for task in (task for _, task in zip(range(room), queue)):
                running[remote.remote(function, task)] = task
            if not running:
                return
            for done in ray.wait(list(running), num_returns=1)[0]:
                yield running.pop(done), _result(ray, done)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        reason = (str(error).strip().splitlines() or ["?"])[-1]
        raise UserError(f"--ray: a node cannot run the task, is this package installed there? {reason}") from error
    except ray.exceptions.RayError:
        return pool.Died(None)


_worker: pool.Worker | None = None


def _do(function: pool.Function, task: Any) -> Any:
    """Run a task in this Ray process's own worker, which later tasks use again."""
    global _worker
    if _worker is None:
        _worker = pool.Worker(function)
    _worker.give(task)
    return _worker.take()[1]
