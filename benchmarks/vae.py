"""Time the VAE by precision, memory format and frames per pass, and measure what each does to the latents.

    python benchmarks/vae.py [--device cuda] [--size full] [--frames 16]

The error is of the posterior's mean, or of the decoded frames, against float64 (float32 on a GPU) in one pass, relative
to its standard deviation; without a GPU TF32 is emulated by rounding weights and inputs of every convolution and
product to 10 bits of mantissa. Decoding in parts differs by more than rounding: temporal layers see other neighbours.
"""

from __future__ import annotations

import argparse

import torch
from full_size import ceilings, measure, module_on, table, use_channels_last
from torch import Tensor, nn

PRECISIONS = ("float32", "tf32", "bfloat16")


def to_tf32(x: Tensor) -> Tensor:
    """float32 rounded to TF32's 10 bits of mantissa, to the nearest, ties to even."""
    bits = x.float().view(torch.int32)
    bits = bits + 0xFFF + ((bits >> 13) & 1)
    return (bits & ~0x1FFF).view(torch.float32)


def emulate_tf32(vae: nn.Module) -> None:
    """Round what the convolutions and linear layers of a float32 VAE multiply."""
    for layer in vae.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            layer.weight.data = to_tf32(layer.weight.data)
            layer.register_forward_pre_hook(lambda module, args: (to_tf32(args[0]), *args[1:]))


def relative(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, over the standard deviation of what is exact."""
    return ((found - exact).square().mean().sqrt() / exact.std()).item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--chunks", type=int, nargs="+", default=[4, 8, 16], help="frames per pass")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    cpu = args.device == "cpu"
    print(", ".join(f"{name} {value:.3g}" for name, value in ceilings(args.device).items()), flush=True)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((args.frames, 3, args.height // 8, args.width // 8), generator=generator) * 2 - 1
    frames = nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear").to(
        args.device
    )  # smooth as pictures are
    exact = module_on(args.device, args.size).base
    exact.vae_precision = "float32"
    exact.freeze(torch.float32)
    nn.Module.double(exact.vae) if cpu else None
    with torch.no_grad():
        reference = (
            exact.vae.encode(frames.double()).latent_dist.mean
            if cpu
            else exact.encode(frames[None], args.frames).mean[0]
        ).float()
        whole = reference[None] * exact.latent_scale
        decoded = (
            exact.vae.decode(reference.double(), num_frames=args.frames).sample[None].float()
            if cpu
            else exact.decode(whole)
        )
    del exact
    rows = []
    for precision in PRECISIONS:
        for last in (False, True):
            svd = module_on(args.device, args.size).base
            svd.vae_precision = precision
            svd.freeze(torch.bfloat16)
            if last:
                use_channels_last(svd.vae)
            if cpu and precision == "tf32":
                emulate_tf32(svd.vae)
            for chunk in args.chunks:
                mean = svd.encode(frames[None], chunk).mean[0]
                error = relative(mean, reference)
                found = measure(
                    lambda svd=svd, chunk=chunk: svd.encode(frames[None], chunk), args.device, 1, args.steps
                )
                rows.append([
                    precision, "channels_last" if last else "", chunk, f"{found.ms:.1f}",
                    f"{found.ms / args.frames:.2f}", f"{found.peak_gib:.1f}", f"{error:.1e}",
                ])  # fmt: skip
            latents = reference[None] * svd.latent_scale
            for svd.decode_chunk in dict.fromkeys([*(c for c in args.chunks if c < args.frames), args.frames]):
                error = relative(svd.decode(latents), decoded)
                found = measure(lambda svd=svd, x=latents: svd.decode(x), args.device, 1, args.steps)
                rows.append([
                    f"{precision}, decoding", "channels_last" if last else "", svd.decode_chunk, f"{found.ms:.1f}",
                    f"{found.ms / args.frames:.2f}", f"{found.peak_gib:.1f}", f"{error:.1e}",
                ])  # fmt: skip
    heads = ["precision", "memory", "frames a pass", "ms", "ms per frame", "peak GiB", "error"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
