"""The pool's tasks on the machines of a Ray cluster: the same functions, the same bytes.

All machines must see the videos and the shards' folder under the same paths, and have this package installed. A task
runs in a process of its own on the node, as the pool's do, so that a decoder that crashes or hangs costs its video.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from datamodules.prepare import pool
from remoco.common.errors import UserError, one_line

IN_FLIGHT = 2  # tasks per CPU of the cluster: one that runs and one that waits


def run(
    function: pool.Function, tasks: Iterable[Any], address: str, workers: int, gpus: int = 0
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result or pool.Died) as they finish.

    Args:
        function: as `pool.run`'s; the number is 0, since a Ray worker sees the GPU it was given alone.
        tasks: taken as the cluster gets free.
        address: of the cluster: `auto` for the one this machine belongs to, HOST:PORT, or `local` to start one here.
        workers: CPUs of a cluster started here.
        gpus: GPUs that a task needs.

    Raises:
        UserError: Ray is not installed, the cluster is not reached, or a node cannot run the task.
    """
    with connected(address, workers) as ray:
        yield from _run(ray, function, tasks, gpus)


@contextmanager
def connected(address: str, workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster for the block, or one that already is.

    Args:
        address: of the cluster: `auto` for the one this machine belongs to, HOST:PORT, or `local` to start one here.
        workers: CPUs of a cluster started here.

    Raises:
        UserError: Ray is not installed, or the cluster is not reached.
    """
    ray = _ray(address)
    started = not ray.is_initialized()
    if started:
        _connect(ray, address, workers)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


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


def set_up(address: str) -> None:
    """Settings of Ray that count when it is first imported: one that is started here listens on 127.0.0.1 alone.

    Ray takes the machine's own address otherwise, and its ports run anybody's code: who reaches one owns the machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on every system: no cluster of machines


def _ray(address: str) -> Any:
    set_up(address)
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install -e '.[ray]' -c constraints.txt") from None
    return ray


def _connect(ray: Any, address: str, workers: int) -> None:
    options = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    try:
        _reach(address)
    except (OSError, ValueError) as error:
        raise UserError(f"--ray {address}: no cluster there: {one_line(error)}") from error
    try:
        environment = {"worker_process_setup_hook": _ours_first()}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment, **options)
    except (OSError, RuntimeError, ValueError) as error:
        # since Ray 2.60 `ray start` asks for a token where one lies in ~/.ray, and HOST:PORT does not send it unasked
        hint = "" if "RAY_AUTH_MODE" in os.environ else " (if it asks for a token: RAY_AUTH_MODE=token)"
        raise UserError(f"--ray {address}: no cluster there{hint}: {one_line(error)}") from error
    if address == "local" and not ray.util.get_node_ip_address().startswith("127."):
        ray.shutdown()
        raise UserError(
            "--ray local: Ray would listen to other machines; "
            "expected RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the environment"
        )


def _ours_first() -> Callable[[], None]:
    """What a Ray worker calls before Ray puts the driver's working folder first in its search.

    A function within a function: Ray sends its code, and not a name to import it by.
    """

    def hook() -> None:
        try:
            from remoco import rooms
        except ImportError:  # the task says that this node lacks the package
            return
        rooms.first()

    return hook


def _reach(address: str) -> None:
    """Knock at HOST:PORT first: Ray tries for many minutes where nobody answers."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


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
