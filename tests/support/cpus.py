"""`make test-cpus`: the tests as other CPUs and numbers of threads run them, and a table of which settings passed.

    python -m tests.support.cpus [what pytest takes, for instance tests/lightning_modules]

A setting chooses among the arithmetic that this machine has: what has no effect here (AVX2 on a CPU without more,
bfloat16 on one without) is tested as the default. Ends with 1 where a setting failed; each one's output is in
the folder runs/test-cpus.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "runs" / "test-cpus"
SETTINGS = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"DNNL_DEFAULT_FPMATH_MODE": "BF16"},
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "4"},
)


def run(setting: dict[str, str], arguments: list[str]) -> tuple[bool, str, float]:
    """The suite under one setting: whether it passed, pytest's last line, and minutes."""
    plain = {name: value for name, value in os.environ.items() if not any(name in other for other in SETTINGS)}
    log, begin = FOLDER / f"{'-'.join(f'{k}-{v}' for k, v in setting.items())}.log", time.monotonic()
    spread = ["-n", "logical", "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *spread, *arguments]
    # one thread where threads are not what is tested; and those that wait leave the cores to the others
    plain |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(log, "w") as file:
        code = subprocess.run(command, cwd=REPO, env=plain | setting, stdout=file, stderr=subprocess.STDOUT).returncode
    lines = log.read_text().splitlines()
    for line in lines:
        if re.match(r"(FAILED|ERROR) ", line):
            print(f"    {line}", flush=True)
    return code == 0, lines[-1].strip("= ") if lines else "no output", (time.monotonic() - begin) / 60


def main(arguments: list[str]) -> int:
    """Run every setting and print the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows, passed = [], True
    for number, setting in enumerate(SETTINGS, start=1):
        name = " ".join(f"{key}={value}" for key, value in setting.items())
        print(f"[{number}/{len(SETTINGS)}] {name} ...", flush=True)
        good, last, minutes = run(setting, arguments)
        passed = passed and good
        rows.append(f"| {name:<34} | {'passed' if good else 'FAILED'} | {minutes:7.1f} | {last} |")
    print(f"\n| {'setting':<34} | result | minutes | pytest |\n|{'-' * 36}|--------|---------|--------|")
    print("\n".join(rows))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
