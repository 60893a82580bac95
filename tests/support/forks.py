"""Functions run in fresh processes that have done the imports already: seconds become milliseconds."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


class Forks:
    """A process that imports a module and forks for each call, as a context.

    The parent of the forks has run no computation, so that no thread of it is missing in them.

    Args:
        module: Dotted name of the module.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    def __enter__(self):
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.forks", self.module]
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
    from importlib import import_module

    serve(import_module(sys.argv[1]))
