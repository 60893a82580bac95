"""`remoco latents`: shards with the frozen networks' work cached, the VAE's posterior and the image embedding."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.prepare import folder
from datamodules.shards import CAPTION, FLOW, INDEX, LATENT, MASKS, META, VIDEO, Shards, read_index
from datamodules.shards.writer import ShardWriter
from remoco.common.errors import BadClip, UserError
from remoco.common.videos import mp4
from remoco.common.whole_files import json_bytes, write_atomic

PLAN = "latents.json"
AHEAD = 8  # clips decoded ahead of the network


def latents(shards: str, out: str, svd: str | None = None, revision: str | None = None) -> None:
    """Copy shards and add the VAE's posterior and the image embedding to each clip. Run it again to resume.

    Args:
        shards: Folder of shards, glob or brace pattern.
        out: Folder for the copy; it is made if missing.
        svd: Folder of Stable Video Diffusion in diffusers' layout, or its hub id.
        revision: Revision of the hub id.

    Example:
        remoco latents data/mine data/mine_latents --svd svd_folder
    """
    if svd is None:
        raise UserError("--svd is missing, expected a folder of SVD in diffusers' layout, or its hub id")
    print(cache(shards, Path(out), svd, revision))


def cache(pattern: str, out: Path, svd: str, revision: str | None = None) -> str:
    """Copy shards and add `latent.safetensors` to each clip; after an interruption it resumes at the next shard.

    Clips that are not readable are left out and listed in `report.jsonl`.

    Args:
        pattern: a folder of shards, a glob or a brace pattern.
        out: folder of the copy.
        svd: diffusers folder or hub id of Stable Video Diffusion.
        revision: of the hub id.

    Returns:
        How many clips were written, and what was left out.

    Raises:
        UserError: no shards at `pattern`, no SVD at `svd`, or `out` holds something else or is in use.
    """
    shards = Shards(pattern)
    encoder = Encoder(svd, revision)
    with folder.alone(out):
        _cache(shards, out, encoder)
        index = read_index(out / INDEX)
        return f"{index['clips']} clips with latents in {out}{folder.left_out(out)}"


def _cache(shards: Shards, out: Path, encoder: Encoder) -> None:
    state = out / ".latents"
    plan = {"shards": _digest(shards), **encoder.hashes}
    folder.claim(out / PLAN, plan, lambda name, _: f"{name} is another")
    if (out / INDEX).exists():
        return
    state.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(shards), desc="latents", unit="clip") as bar:
        for number, count in enumerate(shards.counts):
            record = state / f"{number:05d}.json"
            if record.exists():
                bar.update(int(count))
            else:
                write_atomic(record, json_bytes(_cache_shard(shards, number, out, encoder, bar)))
    _finish(out, state, shards, encoder.hashes)


def _digest(shards: Shards) -> str:
    sidecars = [[shards.path(number).name, int(count)] for number, count in enumerate(shards.counts)]
    folders = sorted({shards.path(number).parent for number in range(len(shards.counts))})
    indices = [hashlib.sha256((folder / INDEX).read_bytes()).hexdigest() for folder in folders]
    return hashlib.sha256(json_bytes([sidecars, indices])).hexdigest()


def _cache_shard(shards: Shards, number: int, out: Path, encoder: Encoder, bar: tqdm) -> dict[str, Any]:
    done: list[str] = []
    bad: list[dict[str, str]] = []
    with ShardWriter(out / f"{number:05d}.tar") as writer:
        for key, result in _decoded(shards, number):
            try:
                members, video = result.result()
                writer.write(key, {**members, LATENT: encoder(video)})
                done.append(key)
            except BadClip as error:
                bad.append({"key": key, "reason": str(error)})
            bar.update()
    return {"entry": writer.entry, "report": {"shard": shards.path(number).name, "clips": done, "bad": bad}}


def _decoded(shards: Shards, number: int) -> Iterator[tuple[str, Future]]:
    """Key and (members, video) of each clip, decoded a few clips ahead in threads."""
    waiting: deque[tuple[str, Future]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for clip in range(int(shards.counts[number])):
            waiting.append((shards.key(number, clip), pool.submit(_read, shards, number, clip)))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _read(shards: Shards, number: int, clip: int) -> tuple[dict[str, bytes], Any]:
    members = shards.read(number, clip, (VIDEO, FLOW, MASKS, CAPTION, META))
    shape = (shards.shape.frames, 3, shards.shape.height, shards.shape.width)
    return members, mp4.decode_mp4(members[VIDEO], shape)


def _finish(out: Path, state: Path, shards: Shards, hashes: dict[str, str]) -> None:
    paths = (state / f"{number:05d}.json" for number in range(len(shards.counts)))
    records = [folder.read_record(path, "delete it, and the same command makes its shard again") for path in paths]
    folder.write_report(out, (record["report"] for record in records))
    fill = "smooth" if shards.filled else "none"
    folder.finish(out, shards.shape, [record["entry"] for record in records], fill, latents=hashes)
    shutil.rmtree(state, ignore_errors=True)


class Encoder:
    """The VAE of an SVD in float32, its image encoder in bfloat16 as the recipe trains, on a GPU where torch sees one.

    Attributes:
        hashes: of the weights of `vae` and `image_encoder`; training refuses latents of other weights.
    """

    def __init__(self, svd: str, revision: str | None) -> None:
        import torch

        from lightning_modules.bases import SVD

        networks = SVD(svd, revision, vae_precision="float32").build(torch.bfloat16)
        self.hashes = {name: networks.hashes[name] for name in ("vae", "image_encoder")}
        del networks.unet
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.networks = networks.requires_grad_(False).eval().float().to(self.device)
        self.networks.image_encoder.to(torch.bfloat16)

    def __call__(self, video: Any) -> bytes:
        """(L, 3, H, W) uint8 to safetensors: latent_mean and latent_std (L, C, h, w), not scaled, and image_embedding
        (1, D), float16.

        Raises:
            BadClip: a value that float16 cannot hold.
        """
        import torch
        from safetensors.torch import save

        from lightning_modules.conditioning import to_float

        with exact(torch):
            frames = to_float(torch.from_numpy(video).to(self.device))
            mean, std = (part[0] for part in self.networks.encode(frames[None]))
            embedding = self.networks.embed_image(frames[:1])[0]
            cached = {"latent_mean": mean, "latent_std": std, "image_embedding": embedding}
        tensors = {name: tensor.half().cpu().contiguous() for name, tensor in cached.items()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise BadClip(f"{name} has values that float16 cannot hold")
        return save(tensors)


@contextlib.contextmanager
def exact(torch: Any) -> Iterator[None]:
    """Full float32, and the same bits each time, on a GPU too."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
