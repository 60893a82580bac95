"""The public parity sets: their weights by the stated rule, their inputs and recorded outputs."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PREFIX = "module.model.diffusion_model."
GAIN = {"lora_up": 0.6, "flow_gamma_temporal": 0.8, "flow_beta_temporal": 0.8}


def procedural(seed: int, name: str, shape: list[int]) -> np.ndarray:
    """Weight of one tensor: uniform in [-1, 1) from crc32(seed:name), shifted and scaled by the kind of tensor."""
    uniform = 2 * np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).random_sample(tuple(shape)) - 1
    parts = name.split(".")
    if parts[-1] == "mix_factor":
        weight = uniform
    elif len(shape) == 1:
        weight = 1 + 0.2 * uniform if parts[-1] == "weight" else 0.1 * uniform
    else:
        gain = next((GAIN[part] for part in parts if part in GAIN), 1.0)
        weight = gain * math.sqrt(3 / math.prod(shape[1:])) * uniform
    return weight.astype(np.float32)


@dataclass
class ParitySet:
    """One set: `config` as recorded, `weights` named as released (with prefix), `io` its inputs and outputs."""

    config: dict
    weights: dict[str, Tensor]
    io: dict[str, Tensor]

    def write(self, folder: Path, suffix: str = ".pt") -> Path:
        """A file in the released layout, with the JSON beside it that tells the channels per head."""
        path = folder / f"released{suffix}"
        path.with_suffix(".json").write_text(json.dumps({"config": self.config}))
        torch.save({"module": self.weights}, path)
        return path


def load_set(name: str, shared: Path | None = None) -> ParitySet:
    """Read `official_NAME`: the committed procedural sets, or one with stored weights from the folder `shared`."""
    folder = FIXTURES if (FIXTURES / f"official_{name}.json").is_file() else shared / "parity"
    record = json.loads((folder / f"official_{name}.json").read_text())
    io = load_file(folder / f"official_{name}_io.safetensors")
    if "keys_file" not in record:
        return ParitySet(record["config"], load_file(folder / f"official_{name}.safetensors"), io)
    shapes = json.loads(gzip.decompress((folder / record["keys_file"]).read_bytes()))
    arrays = {key: procedural(record["weight_seed"], key, shape) for key, shape in shapes.items()}
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(key.encode() + arrays[key].tobytes())
    assert digest.hexdigest() == record["weights_sha256"], f"{name}: not the weights the outputs were recorded with"
    return ParitySet(record["config"], {PREFIX + key: torch.from_numpy(a) for key, a in arrays.items()}, io)


def identity_quant_conv(state: dict) -> dict:
    return state | {"quant_conv.weight": torch.eye(8).view(8, 8, 1, 1), "quant_conv.bias": torch.zeros(8)}


def clip_model():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {"hidden_size": 160, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"image_size": 16, "patch_size": 4, "projection_dim": 16, "hidden_act": "gelu"}
    torch.manual_seed(0)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
