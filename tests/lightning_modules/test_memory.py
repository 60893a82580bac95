"""What reading weights costs: host memory of a fresh process, counted by the kernel."""

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from lightning_modules.bases.sprites.sizes import SIZES

MIB = 2**20
# memory of the process's own, without what files map; a thread looks at it, for the kernel keeps no peak of it
SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import torch
from lightning_modules import MotionControlModule
from lightning_modules.checkpoint import read_checkpoint
from lightning_modules.bases.svd.weights import load_unet

def own():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

before, done, most = own(), False, 0
def watch():
    global most
    while not done:
        most = max(most, own())
        time.sleep(0.002)

thread = threading.Thread(target=watch, daemon=True)  # an error must end the process
thread.start()
held = {}
done = bool(exec(sys.argv[1])) or True
thread.join()
print(json.dumps(max(most, own()) - before))
"""


def grown(repo, code: str) -> int:
    """Bytes of its own that a process takes more while it runs this, at most."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, code], cwd=repo, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A UNet of some hundred MiB in float32."""
    path = tmp_path_factory.mktemp("svd") / "unet"
    sizes = SIZES["small"].unet | {"block_out_channels": (96, 192, 384, 384), "cross_attention_dim": 384}
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(in_channels=8, out_channels=4, **sizes)
    unet.to_empty(device="cpu")
    with torch.no_grad():  # what was in the memory before need not be finite
        for weight in (*unet.parameters(), *unet.buffers()):
            weight.zero_()
    unet.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the kernel does not say what memory is used")
def test_a_base_is_never_in_memory_beyond_its_compute_dtype(repo, folder):
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size > 300 * MIB
    half = grown(repo, f"held['unet'] = load_unet(Path({str(folder.parent)!r}), torch.bfloat16, 'it')")
    assert 0.5 * size <= half < 0.6 * size + 32 * MIB
    assert grown(repo, f"held['unet'] = load_unet(Path({str(folder.parent)!r}), None, 'it')") >= size


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the kernel does not say what memory is used")
def test_a_checkpoint_is_mapped(repo, tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {str(i): torch.ones(4 * MIB) for i in range(16)}}, file)
    read = f"held['c'] = read_checkpoint({str(file)!r})"
    assert grown(repo, read) < 32 * MIB
    assert grown(repo, f"held['c'] = torch.load({str(file)!r}, weights_only=True)") > 250 * MIB
