"""Functions run in fresh processes that have done the imports already: seconds become milliseconds."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FIT = ("remoco.training", "tests.support.callbacks_stand_in", "torch.utils.tensorboard", "s3fs")
"""What `python -m lightning fit` imports, six seconds of CPU time; s3fs where it is installed."""
NETWORKS = (
    "lightning_modules.networks",
    "lightning_modules.bases.sprites.base",
    "lightning_modules.control.lora",
    "peft",
)
"""What it imports when it builds the networks, four seconds more."""


class Forks:
    """A process that imports a module and forks for each call, as a context.

    The parent of the forks has run no computation, so that no thread of it is missing in them.

    Args:
        module: Dotted name of the module.
        others: Modules that the calls import, so that each does not do so again.
    """

    def __init__(self, module: str, *others: str) -> None:
        self.modules = [module, *others]

    def __enter__(self):
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.forks", *self.modules]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=REPO, **pipes)
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, function: str, *arguments, **options) -> int:
        """Exit code of `module.function(*arguments, **options)`, negative for a signal; `said` has its output."""
        with tempfile.NamedTemporaryFile("r") as out:
            print(json.dumps([function, arguments, options, out.name]), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            self.said = out.read()
        return code


@contextlib.contextmanager
def lightnings():
    """`python -m lightning WORDS`, each in a fresh process: (exit code, what it said)."""
    with Forks("tests.support.commands", *FIT, *NETWORKS) as forks:

        def run(*words, cwd=None):
            code = forks.run("train", *map(str, words), cwd=None if cwd is None else str(cwd))
            return code, forks.said

        run.forks = forks
        yield run


def serve(module) -> None:
    for line in sys.stdin:
        function, arguments, options, out = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(out, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.close(0)
            try:
                getattr(module, function)(*arguments, **options)
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            import_module(name)
    serve(import_module(sys.argv[1]))
