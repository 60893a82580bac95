"""Processes that run tasks and may die doing so: a codec that crashes on a file costs that file, not the job."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Callable, Iterable, Iterator, Optional


@dataclass
class Died:
    """What came back instead of a result: the process that ran the task ended."""

    exit_code: Optional[int]


@dataclass
class _Worker:
    process: Any
    pipe: Any
    task: Any = None


def run(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result or Died) as they finish, at most `workers` at a time, each in one of as many fresh processes.

    `function` must not raise; it and the tasks must pickle.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    queue = iter(tasks)
    running: list[_Worker] = []
    try:
        for _ in range(workers):
            worker = _start(context, function)
            running.append(worker)
            if not _give(worker, queue):
                break
        while busy := [worker for worker in running if worker.task is not None]:
            for ready in wait([worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy]):
                worker = next((w for w in busy if ready in (w.pipe, w.process.sentinel) and w.task is not None), None)
                if worker is None:
                    continue
                task, result = worker.task, _receive(worker)
                worker.task = None
                if isinstance(result, Died):
                    running.remove(worker)
                    worker = _start(context, function)
                    running.append(worker)
                _give(worker, queue)
                yield task, result
    finally:
        for worker in running:
            worker.pipe.close()
            if worker.task is not None:
                worker.process.terminate()
        for worker in running:
            worker.process.join()


def _start(context: Any, function: Callable[[Any], Any]) -> _Worker:
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(function, there), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _give(worker: _Worker, queue: Iterator[Any]) -> bool:
    worker.task = next(queue, None)
    if worker.task is not None:
        worker.pipe.send(worker.task)
    return worker.task is not None


def _receive(worker: _Worker) -> Any:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        return Died(worker.process.exitcode)


def _serve(function: Callable[[Any], Any], pipe: Any) -> None:
    while True:
        try:
            pipe.send(function(pipe.recv()))
        except (EOFError, OSError):  # the parent is gone
            return
