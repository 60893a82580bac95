"""What a model of photographs gives by how many components of patches its network corrects: `remoco photos`, for each.

python benchmarks/corrected.py --photos data/photos [--checkpoint embedded] [--clips 48] [--components 0 3 6 16]
"""

from __future__ import annotations

import torch
from harness import parser

from lightning_modules.pipeline import MotionControlPipeline
from remoco.photos import print_rows


def main() -> None:
    """Print a table for each number."""
    options = parser(__doc__)
    options.add_argument("--photos", default="data/photos", help="folder of photographs, as data.photos")
    options.add_argument("--checkpoint", default="embedded", help="over bases.Photos")
    options.add_argument("--clips", type=int, default=48)
    options.add_argument("--components", type=int, nargs="+", default=[0, 3, 6, 16])
    args = options.parse_args()
    torch.set_num_threads(1)
    module = MotionControlPipeline.from_checkpoint(args.checkpoint).module
    for corrected in args.components:
        module.base.corrected = corrected
        print(f"\n{corrected} components corrected:", flush=True)
        print_rows(module, args.photos, args.clips, seed=0)


if __name__ == "__main__":
    main()
