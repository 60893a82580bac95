"""Time a training step and a guided sampling run beside what people run today, on the same weights and inputs.

    python benchmarks/against.py [--released MOTIONPRO] [--frames 8 16] [--rounds 5]

`diffusers + peft` is diffusers' network with peft's LoRA and plain hooks for the modulation. `released` is the released
MotionPro code of a checkout, with deepspeed and xformers replaced (released_side.py). `bare` is diffusers' network
alone, frozen: its forward, and its gradient by the input. Before anything is timed, losses, gradients and samples of
all sides are compared in float64. Where they differ by more than 1e-9, the script ends with 1.

Each side is a process of its own, with one thread; they take turns. CPU seconds, medians and quartiles. Memory, of a
second process of each, is what it adds to one that has imported everything: weights, what is trained with its
optimizer's state, gradients and activations.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import released_side
import sides
import torch
from sides import Case, Side
from torch import Tensor

TOLERANCE = 1e-9
BARE, PEFT, RELEASED, OURS = "bare", "diffusers + peft", "released", "ours"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WORK = ("step", "sample")
MMAP_THRESHOLD = -3  # of glibc's mallopt


def makers(case: Case, released: str | None) -> dict[str, Callable[[Case, torch.dtype], Side]]:
    """Name of a side -> what makes it."""
    found: dict[str, Any] = {BARE: sides.bare, PEFT: sides.with_peft}
    if released is not None and case.base == "svd" and case.lora == "linear":
        found[RELEASED] = partial(released_side.released, checkout=released)
    return found | {OURS: sides.ours, f"{OURS}, all recomputed": partial(sides.ours, recompute="all")}


# Outputs


def differences(pipe: Any, case: Case, released: str | None, steps: int) -> None:
    """Send side -> its largest difference from ours, float64, over the largest number of the kind, at a small size."""
    small = case._replace(frames=4, height=64, width=64)
    found: dict[str, dict[str, Tensor]] = {}
    for name, make in makers(case, released).items():
        with exactly() if case.base == "wan" else nullcontext():
            found[name] = outputs(make(small, torch.float64), small, steps)
    others = {name: each for name, each in found.items() if name not in (BARE, OURS)}
    pipe.send({name: apart(found[OURS], each) for name, each in others.items()})


def apart(mine: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of outputs over the largest number of their kind; infinite where one is not finite."""
    kinds: dict[str, tuple[float, float]] = {}
    for key in mine.keys() | other.keys():
        each = [outputs[key] for outputs in (mine, other) if key in outputs]
        if not all(t.isfinite().all() for t in each):
            return math.inf
        off = each[0] - each[1] if len(each) == 2 else each[0]
        kind = key.partition(".")[0]
        worst, largest = kinds.get(kind, (0.0, 0.0))
        sizes = (t.abs().max().item() for t in each)
        kinds[kind] = max(worst, off.abs().max().item()), max(largest, *sizes)
    return max(worst / largest for worst, largest in kinds.values())


def outputs(side: Side, case: Case, steps: int) -> dict[str, Tensor]:
    """Loss, latents of a sample, and gradients; a parameter without one is absent, as if it were zero."""
    given = case.inputs(case.module(torch.float64))
    sample = side.sample(given, steps)
    loss = side.backward(given)
    gradients = {f"gradient.{name}": p.grad for name, p in side.trained.items() if p.grad is not None}
    return {"loss": loss, "sample": sample, **gradients}


@contextmanager
def exactly() -> Iterator[None]:
    """diffusers' Wan computes its norms in float32 also in a float64 network: not here, on either side."""
    plain = torch.Tensor.float
    with mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else plain(x)):
        yield


# Time and memory, in a process for each side


def serve(pipe: Any, case: Case, name: str, dtype: torch.dtype, released: str | None, steps: int) -> None:
    """Build a side, and send the CPU seconds of each `step` or `sample` that is asked for."""
    side = makers(case, released)[name](case, dtype)
    calls = work(side, case, dtype, steps)
    pipe.send("ready")
    with suppress(EOFError):  # nobody asks any more
        while True:
            pipe.send(harness.timed(calls[pipe.recv()])[1])
            trim()  # the sides take turns, and each has the machine's memory


def weigh(pipe: Any, case: Case, name: str, dtype: torch.dtype, released: str | None, steps: int) -> None:
    """Send the most bytes that a `step` and a `sample` take, with what is built for them."""
    with suppress(AttributeError):  # glibc's own: what is freed is given back at once, which takes time
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
    before = resident("RssAnon")
    side = makers(case, released)[name](case, dtype)
    calls = work(side, case, dtype, steps)
    found = {"sample": peak(calls["sample"]) - before}
    calls["step"]()  # the optimizer's state is there from now on
    pipe.send({"step": peak(calls["step"]) - before, **found})


def work(side: Side, case: Case, dtype: torch.dtype, steps: int) -> dict[str, Callable[[], Tensor]]:
    """What is measured of a side."""
    given = case.inputs(case.module(dtype))
    return {"step": partial(side.step, given), "sample": partial(side.sample, given, steps)}


@contextmanager
def process(function: Callable[..., None], *args: Any) -> Iterator[Any]:
    """A pipe to a function in a process of its own, a fork: seconds of imports are done once."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def run() -> None:
        mine.close()  # so that nobody else holds it: its end is the end of the child's work
        function(theirs, *args)

    child = context.Process(target=run)
    child.start()
    theirs.close()  # so that a child that died is an error here
    try:
        yield mine
    finally:
        mine.close()
        child.join()


def peak(call: Callable[[], Any]) -> float:
    """Most bytes of memory during a call; nan where nobody tells."""
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    call()
    return resident("VmHWM") - resident("RssFile")  # pages of libraries come in as they are used


def trim() -> None:
    """Give memory that is free back to the system."""
    with suppress(AttributeError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def resident(name: str) -> float:
    """A number of /proc/self/status in bytes; nan without the file."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * float(line.split()[1])
    return float("nan")


def measured(case: Case, dtype: torch.dtype, args: Namespace) -> None:
    """Print the table of one clip, and the ratios."""
    seconds, rows, of_side = {}, [], {}
    for name in makers(case, args.released):  # one after the other, for the sake of memory
        with process(weigh, case, name, dtype, args.released, args.steps) as pipe:
            of_side[name] = pipe.recv()
    with ExitStack() as stack:
        ask = {}
        for name in of_side:
            pipe = stack.enter_context(process(serve, case, name, dtype, args.released, args.steps))
            pipe.recv()
            ask[name] = partial(answer, pipe)
        for what in WORK:
            calls = {name: partial(each, what) for name, each in ask.items()}
            seconds[what] = harness.interleaved(calls, args.rounds)
    memory = {what: {name: found[what] for name, found in of_side.items()} for what in WORK}
    medians = {what: {name: statistics.median(t) for name, t in found.items()} for what, found in seconds.items()}
    for name in ask:
        row = [name]
        for what in WORK:
            all_of_it = [1e3 * each for each in seconds[what][name]]
            low, _, high = statistics.quantiles(all_of_it, n=4) if args.rounds > 1 else all_of_it * 3
            row += [f"{1e3 * medians[what][name]:.0f} [{low:.0f}..{high:.0f}]", times(medians[what], name)]
            row += [f"{memory[what][name] / 1e6:.0f}", times(memory[what], name)]
        rows.append(row)
    heads = ["CPU ms", "times", "MB", "times"]
    print(harness.table(["side", *(f"{what}: {head}" for what in WORK for head in heads)], rows), "\n")
    print(ratios(medians, memory), "\n", flush=True)


def ratios(medians: dict[str, dict[str, float]], memory: dict[str, dict[str, float]]) -> str:
    """A table of ours over what people run: the median time and the peak memory of each kind of work."""
    others = [name for name in medians["step"] if not name.startswith(OURS)]
    heads = [f"{what}: {head}" for what in WORK for head in ("time", "memory")]
    rows = [
        [f"ours over {name}", *(f"{of[what][OURS] / of[what][name]:.2f}" for what in WORK for of in (medians, memory))]
        for name in others
    ]
    return harness.table(["", *heads], rows)


def answer(pipe: Any, what: str) -> float:
    """What a side's process says."""
    pipe.send(what)
    return pipe.recv()


def times(of: dict[str, float], name: str) -> str:
    """A ratio to the bare network's."""
    return f"{of[name] / of[BARE]:.2f}"


def main() -> None:
    """See the module."""
    parser = harness.parser(__doc__)
    parser.add_argument("--released", metavar="CHECKOUT", help="of github.com/HiDream-ai/MotionPro, also measured")
    parser.add_argument("--bases", nargs="+", default=["svd", "wan", "cogvideox"], choices=sides.TINY)
    parser.add_argument("--lora", nargs="+", default=["attention", "linear"], choices=["attention", "linear"])
    parser.add_argument("--size", default="quarter", choices=["tiny", "quarter"])
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16], help="of SVD; of the others 4 n / 2 + 1")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--dtypes", nargs="+", default=[*DTYPES], choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one")
    parser.add_argument("--steps", type=int, default=2, help="steps of a sampling run")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if args.released:
        released_side.check(args.released)
        if args.height % 64 or args.width % 64:
            parser.error("--height and --width: expected multiples of 64 with --released, whose network has no others")
    loras = {"svd": args.lora, "wan": ["attention"], "cogvideox": ["attention"]}
    cases = [
        Case(base, args.size, height=args.height, width=args.width, lora=k) for base in args.bases for k in loras[base]
    ]
    rows, same = [], True
    for case in cases:
        with process(differences, case, args.released, args.steps) as pipe:
            found = pipe.recv()
        for name, off in found.items():
            same &= off <= TOLERANCE
            rows.append([case.base, case.lora, name, f"{off:.1e}"])
    print(harness.table(["base", "LoRA on", "side", "largest difference from ours, float64"], rows), "\n", flush=True)
    if not same:
        sys.exit(f"outputs differ by more than {TOLERANCE}, nothing was timed")
    for dtype in args.dtypes:
        if dtype == "bfloat16" and not torch.cpu.get_capabilities().get("avx512_bf16"):
            print("bfloat16: skipped, this CPU has no products of it")
            continue
        for case in (case._replace(frames=frames) for case in cases for frames in args.frames):
            print(f"{case.base}, {case.length} x {case.height} x {case.width}, LoRA on {case.lora}, {dtype}:\n")
            measured(case, DTYPES[dtype], args)


if __name__ == "__main__":
    main()
