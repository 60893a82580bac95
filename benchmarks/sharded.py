"""Train a tiny Wan on two gloo ranks with its frozen blocks in parts (FSDP2), and compare with DDP, by bits.

    python benchmarks/sharded.py

`all parts` is Lightning's ModelParallelStrategy over blocks, encoder and modulation. `frozen parts` is DDP for what is
trained, with FSDP2 for the frozen parameters of the blocks alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import REPO, parser, table
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import callbacks.finite
import lightning_modules.record
from lightning_modules import MotionControlModule

MODEL_PARALLEL = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}
SIDES: dict[str, tuple[str, Any]] = {
    "ddp": ("lightning_modules.MotionControlModule", "ddp"),
    "all parts": ("sharded.AllParts", MODEL_PARALLEL),
    "frozen parts": ("sharded.FrozenParts", "ddp"),
}
OPTIONS = {
    "trainer.accelerator": "cpu", "trainer.devices": 2, "trainer.max_steps": 4, "trainer.limit_val_batches": 0,
    "trainer.num_sanity_val_steps": 0, "trainer.enable_progress_bar": "false",
    "model.init_args.base": "lightning_modules.bases.RandomWan", "model.init_args.base.init_args.size": "tiny_i2v",
    "model.init_args.base.init_args.trained": "false", "model.init_args.base.init_args.recompute": "all",
    "model.init_args.condition.init_args.region_size": 16, "model.init_args.control.lora": "attention",
    "model.init_args.control.rank": 2, "model.init_args.noise.dropout": 0.5, "model.init_args.sampling.inputs": "{}",
    "data.init_args.clips": 6, "data.init_args.val_clips": 3, "data.init_args.frames": 5,
    "data.init_args.height": 48, "data.init_args.num_workers": 0, "data.init_args.batch_size": 2,
    "trainer.callbacks": json.dumps([
        {"class_path": "callbacks.RunFolder"},
        {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 4}},
    ]),
}  # fmt: skip


class AllParts(MotionControlModule):
    """All parameters of the network, the encoder and the modulation are in parts."""

    def configure_model(self, compute_dtype: torch.dtype | None = None) -> None:
        """As `MotionControlModule.configure_model`, then in parts; what refuses that is left out."""
        if self.built:
            return
        super().configure_model(compute_dtype)
        mesh = self.device_mesh["data_parallel"]
        for network in self.base.denoisers().values():
            for part in (*network.blocks, network, self.motion_encoder, *self.injections[0]._weights):
                fully_shard(part, mesh=mesh)


class FrozenParts(MotionControlModule):
    """The frozen parameters of the network are in parts."""

    def configure_model(self, compute_dtype: torch.dtype | None = None) -> None:
        """As `MotionControlModule.configure_model`, then in parts, which DDP leaves alone."""
        if self.built:
            return
        super().configure_model(compute_dtype)
        mesh = init_device_mesh("cpu", (2,))
        for network in self.base.denoisers().values():
            trained = {p for p in network.parameters() if p.requires_grad}
            for part in (*network.blocks, network):
                fully_shard(part, mesh=mesh, ignored_params=trained)
        left = [name for name, _ in self.named_buffers()]
        left += [name for name, p in self.named_parameters() if not p.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, left)


if __name__ != "__main__":  # in a rank: these two refuse it
    callbacks.finite.first_bad = lambda module: None
    lightning_modules.record.check_trainer = lambda trainer: None


def trained(side: str, folder: Path) -> dict[str, Any]:
    """The last checkpoint of a side's run."""
    module, strategy = SIDES[side]
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    words += [f"--model.class_path={module}", f"--trainer.logger.init_args.save_dir={folder}"]
    words += [f"--trainer.strategy={strategy if isinstance(strategy, str) else json.dumps(strategy)}"]
    words += ["--trainer.logger.init_args.name=run"]
    program = ["-m", "lightning", "fit", "--config", str(REPO / "configs/quickstart.yaml"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO / "benchmarks")}
    subprocess.run([sys.executable, *program], check=True, cwd=REPO, env=environment, stdout=subprocess.DEVNULL)
    return torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)


def main() -> None:
    """Compare and print."""
    parser(__doc__).parse_args()
    found = {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as name:
            found[side] = trained(side, Path(name))
    ddp, rows = found["ddp"], []
    for side, checkpoint in found.items():
        off = [(t - checkpoint["state_dict"][name]).abs().max().item() for name, t in ddp["state_dict"].items()]
        state = checkpoint["optimizer_states"][0]["state"]
        rows.append([side, f"{max(off):.1e}", "yes" if list(state) == [*ddp["optimizer_states"][0]["state"]] else "no"])
    print(table(["", "weights' largest difference from DDP's", "optimizer's state under the same keys"], rows))


if __name__ == "__main__":
    main()
