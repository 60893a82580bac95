"""Count how much of a card a clip takes to generate, and what `--memory` chooses on cards of several sizes.

    python benchmarks/memory.py [--base svd wan14b ...] [--size full]

Nothing is allocated (`lightning_modules.memory`). Network with LoRA and control in bfloat16, VAE and CLIP in the
precision of pipelines. GB are 10^9 bytes, a card's GiB 2^30; a part of a card is left for what is not counted.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import torch
from full_size import BASES, Shape, module_on, recipe
from harness import parser, table
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from lightning_modules.memory import Counted, count
from remoco.common.errors import UserError

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
GATED = {"feed_forward_proj": "gated-gelu"}
CARDS = (8, 12, 16, 24, 48, 80)  # GiB
PARTS = ["clip", "text encoder (host)", "network", "copy of LoRA's layers", "VAE, CLIP", "step", "encoding, decoding"]


def text_encoder(base: str) -> int:
    """Bytes of a base's text encoder in bfloat16; 0 without."""
    kinds = {"wan": (UMT5EncoderModel, UMT5Config, 256384), "cogvideox": (T5EncoderModel, T5Config, 32128)}
    for name, (cls, config, vocabulary) in kinds.items():
        if base.startswith(name):
            with torch.device("meta"):
                return 2 * sum(p.numel() for p in cls(config(vocab_size=vocabulary, **XXL, **GATED)).parameters())
    return 0


def on_card(counted: Counted, gib: int) -> str:
    """What is chosen on a card, with GB counted; or that nothing fits."""
    try:
        plan = counted.pick(gib)
    except UserError:
        return "-"
    return f"{counted.need(plan) / 1e9:.1f}: {plan}"


def main() -> None:
    """Count and print two tables: a row for each base, and one for each base and card."""
    options = parser(__doc__)
    options.add_argument("--base", nargs="+", choices=BASES, default=list(BASES))
    options.add_argument("--size", default="full", choices=("tiny", "full"))
    options.add_argument("--json", help="file for the bytes")
    args = options.parse_args()
    rows, cards, numbers = [], [], {}
    for base in args.base:
        shape = recipe(base)[1]._replace(batch=1) if args.size == "full" else Shape(1, 9, 64, 64)
        start, counted = time.process_time(), count(module_on("meta", args.size, base=base), *shape[1:])
        parts = (text_encoder(base), counted.rest + counted.blocks, counted.merged, counted.beside, counted.step)
        cells = [f"{value / 1e9:.1f}" for value in (*parts, counted.clip[None])]
        rows.append([base, f"{shape.frames} x {shape.height} x {shape.width}", *cells])
        cards += [[base, f"{gib} GiB", on_card(counted, gib)] for gib in CARDS]
        numbers[base] = asdict(counted) | {"clip": {str(part): value for part, value in counted.clip.items()}}
        print(f"{base}: {time.process_time() - start:.0f} CPU s to count", flush=True)
    print(table(["base", *PARTS], rows), table(["base", "card", "GB counted, and what is chosen"], cards), sep="\n\n")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(numbers, file, indent=1)


if __name__ == "__main__":
    main()
