"""What each setting changes in which ours and diffusers' way of sampling the bare base differ (docs/fidelity.md).

    python benchmarks/bare_svd.py                      # random weights
    python benchmarks/bare_svd.py --svd SVD_FOLDER     # SVD's own; a GPU helps

Prints a table: the change of the final latents over their standard deviation, root of the mean square.
"""

from dataclasses import fields, replace

import harness
import numpy as np
import torch
from PIL import Image

from lightning_modules.bases import SVD, Sprites
from lightning_modules.bases.svd.bare import DIFFUSERS, OURS, sample_bare


def main() -> None:
    """See the module."""
    parser = harness.parser(__doc__)
    parser.add_argument("--svd", help="folder in diffusers' layout; random weights of size tiny without it")
    parser.add_argument("--image", help="first frame; smooth noise of 380 x 300 without it")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    svd = SVD(options.svd).build(torch.float64) if options.svd else Sprites("tiny", latents="vae").build(torch.float64)
    image = options.image or _noise()
    size = {"height": options.height, "width": options.width}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, *size.values(), generator=generator, dtype=torch.float64)
    shape = (1, options.frames, svd.channels, options.height // 8, options.width // 8)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64)
    base = replace(DIFFUSERS, num_frames=options.frames, steps=options.steps)

    def sampled(**changes: float) -> torch.Tensor:
        given = {"noise": noise, "latents": latents, "output_type": "latent"}
        return sample_bare(svd, image, replace(base, **changes), **size, **given).frames

    reference = sampled()
    rows = []
    for name in (field.name for field in fields(OURS)):
        theirs, own = getattr(DIFFUSERS, name), getattr(OURS, name)
        if theirs != own and name != "num_frames":
            change = (sampled(**{name: own}) - reference).square().mean().sqrt() / reference.std()
            rows.append([name, theirs, own, f"{change:.2g}"])
    print(harness.table(["setting", "diffusers", "ours", "change"], rows))


def _noise() -> Image.Image:
    coarse = np.random.RandomState(0).randint(0, 256, (15, 19, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((380, 300), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main()
