"""Processes that run tasks and may die doing so: a codec that crashes on a file costs that file, not the job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from datamodules import forking

Function = Callable[[Any, int], Any]  # (task, number of the worker) -> result


@dataclass
class Died:
    """What came back instead of a result: the process that ran the task ended."""

    exit_code: int | None


class Worker:
    """A process that runs `function` on one task after another; a new one takes its place when it dies.

    Args:
        function: function of a task and the worker's number; must not raise; it and the tasks must pickle.
        number: number of this worker among its pool's; the process that takes a dead one's place has it too.
    """

    def __init__(self, function: Function, number: int = 0) -> None:
        self._function, self._number = function, number
        self._context = forking.context(function.__module__)
        self.task: Any = None
        self._start()

    def _start(self) -> None:
        self.pipe, there = self._context.Pipe()
        self.process = self._context.Process(target=_serve, args=(self._function, there, self._number), daemon=True)
        self.process.start()
        there.close()

    def give(self, task: Any) -> None:
        """Hand the worker its next task."""
        self.task = task
        try:
            self.pipe.send(task)
        except OSError:  # it died while it waited
            self._replace()
            self.pipe.send(task)

    def take(self) -> tuple[Any, Any]:
        """Wait for the last task; (task, result or Died)."""
        task, self.task = self.task, None
        try:
            return task, self.pipe.recv()
        except (EOFError, OSError):
            return task, Died(self._replace())

    def _replace(self) -> int | None:
        """Start a new process; the exit code of the old one."""
        self.process.join()
        self.pipe.close()
        exit_code = self.process.exitcode
        self._start()
        return exit_code

    def stop(self) -> None:
        """End the process; a running task is abandoned."""
        self.pipe.close()
        if self.task is not None:
            self.process.terminate()
        self.process.join()


def run(function: Function, tasks: Iterable[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """Yield (task, result or Died) as they finish, at most `workers` at a time, each in one of as many fresh processes.

    `function` gets the task and the worker's number, 0 to workers - 1; it must not raise; it and the tasks must pickle.
    """
    queue = iter(tasks)
    running: list[Worker] = []

    def give(worker: Worker) -> bool:
        task = next(queue, None)
        if task is not None:
            worker.give(task)
        return task is not None

    try:
        for place in range(workers):
            running.append(Worker(function, place))
            if not give(running[-1]):
                break
        while busy := [worker for worker in running if worker.task is not None]:
            ready = set(map(id, wait([item for worker in busy for item in (worker.pipe, worker.process.sentinel)])))
            for worker in busy:
                if id(worker.pipe) in ready or not worker.process.is_alive():
                    finished = worker.take()
                    give(worker)
                    yield finished
    finally:
        for worker in running:
            worker.stop()


def _serve(function: Function, pipe: Any, number: int) -> None:
    while True:
        try:
            pipe.send(function(pipe.recv(), number))
        except (EOFError, OSError):  # the parent is gone
            return
