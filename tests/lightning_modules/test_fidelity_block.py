"""The calls that docs/fidelity.md shows for a released file run as they are printed."""

import re
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parents[2] / "docs" / "fidelity.md"


def test_the_block_runs_as_printed(parity, tmp_path, monkeypatch):
    block = next(text for text in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "load_released" in text)
    parity.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    io = {name.removeprefix("in."): tensor.double() for name, tensor in parity.io.items() if name.startswith("in.")}
    names = {
        "control": io["flow"], "x": io["x"], "sigma": io["sigma_unet"], "image_latent": io["concat"],
        "image_embedding": io["context"], "ids": io["ids"], "keep": None, "noisy": io["x"], "clean": io["x"],
        "denoised": 0.5 * io["x"], "noise": io["init_noise"], "torch": torch,
    }  # fmt: skip
    with torch.no_grad():
        exec(compile(block, str(DOCS), "exec"), names)  # as a reader would run it
        predicted = names["net"].denoiser.network(io["x"], 0.25 * io["sigma_unet"].log(), names["cond"])
    assert (predicted - parity.io["out.unet.full"].double()).abs().max() < 1e-9
