"""Measure what a training step of several ranks sends, and how long each rank waits for its data.

    python benchmarks/ranks.py [--ranks 1 2 4] [--steps 20] [--recipes base lora]

Runs the quick start without its validations, on two "nodes", 127.0.0.2 and 127.0.0.3, with gloo. `base` trains the
whole network, `lora` a motion encoder and LoRA over a frozen one. The batch of a step is the same for any number of
ranks. Each rank reads from the kernel what its own TCP connections received. Ends with 1 where samples, regions or
noise are not the same bits with another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from harness import REPO, parser, table
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.video_module import NOISE

NODES = ("127.0.0.2", "127.0.0.3")
BATCH = 12  # clips of a step, over all ranks
WARM = 3  # steps before what is measured: DDP forms its buckets in the first, and workers start
RECEIVED = 128  # offset of tcpi_bytes_received in Linux's struct tcp_info
RECIPES = {
    "base": [],
    "lora": ["--model.init_args.base.init_args.trained=false", "--model.init_args.control.lora=attention"],
}


class Watch(Callback):
    """Writes what this rank received and waited for, and digests of what it drew, to `FOLDER/RANK.json`.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.drawn = Path(folder), {}
        self.waited, self.ended = 0.0, time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is here."""
        now = time.perf_counter()
        if batch_idx >= WARM:
            self.waited += now - self.ended
            return
        drawn = {"noise": pl_module.draw_noise(batch, NOISE, (4, 8, 8)), "control": pl_module.draw_control(batch)}
        for i, position in enumerate(batch["position"].tolist()):
            parts = (batch["flow"], batch["first_frame"], *drawn.values())
            whole = b"".join(part[i].contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
            self.drawn[position] = hashlib.sha256(whole).hexdigest()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        self.ended = time.perf_counter()
        if batch_idx == WARM - 1:
            self.began, self.before = self.ended, received()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        steps, trained = trainer.global_step - WARM, pl_module.optimized()
        found = {
            "received": (received() - self.before) / steps,
            "waited": self.waited / (self.ended - self.began),
            "trained": sum(p.nbytes for p in trained.values()),
            "parameters": sum(p.nbytes for p in pl_module.parameters()),
            "drawn": self.drawn,
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))
        if trainer.global_rank == 0:
            torch.save({name: p.detach() for name, p in trained.items()}, self.folder / "weights.pt")


def received() -> int:
    """Bytes that the TCP connections of this process have received."""
    total = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as one:
            told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED + 8)
            total += struct.unpack_from("<Q", told, RECEIVED)[0]
    return total


def run(recipe: str, ranks: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank wrote.

    Raises:
        RuntimeError: a rank failed.
    """
    nodes = NODES[: min(ranks, 2)]
    with socket.socket() as one:
        one.bind((nodes[0], 0))
        endpoint = f"{nodes[0]}:{one.getsockname()[1]}"
    callbacks = [{"class_path": "ranks.Watch", "init_args": {"folder": str(folder)}}]
    program = [
        "-m", "lightning", "fit", "--config", str(REPO / "configs/quickstart.yaml"), *RECIPES[recipe],
        "--trainer.accelerator=cpu", "--trainer.strategy=ddp", f"--trainer.num_nodes={len(nodes)}",
        f"--trainer.devices={ranks // len(nodes)}", f"--trainer.max_steps={WARM + steps}",
        "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.logger=false", "--trainer.enable_checkpointing=false", f"--trainer.default_root_dir={folder}",
        f"--trainer.callbacks={json.dumps(callbacks)}", f"--data.init_args.batch_size={BATCH // ranks}",
        "--data.init_args.clips=256",
    ]  # fmt: skip
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPO / "benchmarks"),
    }  # fmt: skip
    launchers = []
    for node, address in enumerate(nodes):
        launch = [
            "--nnodes", str(len(nodes)), "--nproc-per-node", str(ranks // len(nodes)), "--rdzv-backend", "c10d",
            "--rdzv-endpoint", endpoint, "--rdzv-conf", f"is_host={int(node == 0)}", "--local-addr", address,
        ]  # fmt: skip
        with (folder / f"{address}.log").open("w") as log:
            command = [sys.executable, "-m", "torch.distributed.run", *launch, *program]
            launchers.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment))
    try:
        if any([launcher.wait() for launcher in launchers]):
            raise RuntimeError("\n".join(log.read_text()[-2000:] for log in folder.glob("*.log")))
    finally:
        for launcher in launchers:
            launcher.terminate()  # which ends its ranks too; of one that has ended it does nothing
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], choices=[1, 2, 4])
    options.add_argument("--steps", type=int, default=20, help="steps that are measured, after 3")
    options.add_argument("--recipes", nargs="+", default=[*RECIPES], choices=RECIPES)
    args = options.parse_args()
    if args.steps < 1:
        options.error(f"--steps is {args.steps}, expected at least 1")
    rows, same = [], True
    for recipe in args.recipes:
        first: dict[str, Any] = {}
        for ranks in args.ranks:
            with tempfile.TemporaryDirectory() as name:
                found = run(recipe, ranks, args.steps, Path(name))
                weights = torch.load(Path(name) / "weights.pt", weights_only=True)
            drawn = {position: digest for each in found for position, digest in each["drawn"].items()}
            first = first or {"drawn": drawn, "weights": weights}
            same &= drawn == first["drawn"]
            trained, measured = found[0]["trained"], [each["received"] for each in found]
            off = max((weights[key] - t).abs().max().item() for key, t in first["weights"].items())
            rows.append([
                recipe, ranks, f"{found[0]['parameters'] / 1e6:.2f}", f"{trained / 1e6:.2f}",
                f"{2 * (ranks - 1) / ranks * trained / 1e6:.3f}", span(measured, 1e-6, 3),
                span([each["waited"] for each in found], 100, 1), "yes" if drawn == first["drawn"] else "**no**",
                f"{off:.0e}",
            ])  # fmt: skip
    heads = (
        "recipe", "ranks", "parameters, MB", "trained, MB", "counted: 2 (n - 1) / n of trained, MB",
        "received per rank and step, MB", "waited for data, % of a step", "same samples, regions, noise",
        "weights' largest difference",
    )  # fmt: skip
    print(table(heads, rows))
    if not same:
        sys.exit("samples, regions or noise are others with another number of ranks")


def span(values: list[float], factor: float, digits: int) -> str:
    """The least and the greatest of the ranks' values."""
    least, most = (f"{factor * each:.{digits}f}" for each in (min(values), max(values)))
    return least if least == most else f"{least}..{most}"


if __name__ == "__main__":
    main()
