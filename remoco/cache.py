"""`remoco cache`: shards with the frozen networks' work beside each clip, so that no training repeats it."""

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
from datamodules.shards.cached import HASHES, TEXT, SetTexts, layout_of, pack_texts
from datamodules.shards.writer import ShardWriter
from remoco.captions import embed
from remoco.common.errors import BadClip, UserError
from remoco.common.videos import mp4
from remoco.common.whole_files import json_bytes, write_atomic

Captions = Any  # `datamodules.captions.Captions`, whose module needs torch, which takes seconds
PLAN = "cache.json"
STATE = ".cache"  # folder in OUT of how far the work is, and of all captions' embeddings
AHEAD = 8  # clips decoded ahead of the network
ENCODER = HASHES[0]


def cache(
    shards: str,
    out: str,
    base: str | None = None,
    revision: str | None = None,
    negative_prompt: str | None = None,
    device: str | None = None,
) -> None:
    """Copy shards and add to each clip what a base's frozen networks make of it. Run it again to resume.

    These are the clip's latents, what the network is given of the first frame, and the caption's embedding: what the
    base takes of them. A training on the copy then reads them.

    Args:
        shards: Folder of shards, glob or brace pattern.
        out: Folder for the copy; it is made if missing.
        base: Folder of SVD, Wan or CogVideoX in diffusers' layout, or its hub id.
        revision: Revision of the hub id.
        negative_prompt: What the samples of the training shall not show, in words, for a base that takes text.
        device: Torch device of the networks, for example `cpu`. Default: the GPU if there is one.

    Example:
        remoco cache data/mine data/mine_cache --base wan_folder
    """
    if base is None:
        raise UserError(
            "--base is missing, expected a folder of SVD, Wan or CogVideoX in diffusers' layout, or a hub id"
        )
    print(make(shards, Path(out), base, revision, negative_prompt, device))


def make(
    pattern: str,
    out: Path,
    base: str,
    revision: str | None = None,
    negative_prompt: str | None = None,
    device: str | None = None,
) -> str:
    """Copy shards and add `latent.safetensors` to each clip; after an interruption it resumes at the next shard.

    Clips that are not readable are left out and listed in `report.jsonl`. The arguments are those of `cache`.

    Returns:
        How many clips were written, and what was left out.

    Raises:
        UserError: no shards at `pattern`, no base at `base`, clips that it does not take, or `out` holds something else
            or is in use.
    """
    from remoco.devices import usable_device

    shards = Shards(pattern)
    job = Job(shards, base, revision, negative_prompt, usable_device(device))
    plan = job.plan()
    with folder.alone(out):
        folder.claim(out / PLAN, plan, lambda name, _: f"{name} is another")
        if not (out / INDEX).exists():
            job.run(out)
        shutil.rmtree(out / STATE, ignore_errors=True)  # also what was killed after the index was written
        return f"{read_index(out / INDEX)['clips']} clips with latents in {out}{folder.left_out(out)}"


class Job:
    """What is made of which shards.

    Args:
        shards: The set.
        base: Folder or hub id of a base.
        revision: Of the hub id.
        negative_prompt: In words, for a base that takes text.
        device: Of the networks.

    Raises:
        UserError: there is no such base, or it does not take such clips or texts.
    """

    def __init__(
        self, shards: Shards, base: str, revision: str | None, negative_prompt: str | None, device: Any
    ) -> None:
        from lightning_modules.bases.of_folder import base_of

        self.shards, self.name, self.revision = shards, base, revision
        self.negative_prompt, self.device, self.base = negative_prompt, device, base_of(base, revision)
        self.takes_text = "text" in self.base.conditionings
        if negative_prompt is not None and not self.takes_text:
            raise UserError("--negative-prompt: this base takes no text, expected none")
        try:
            self.base.grid.check(shards.shape.frames, shards.shape.height, shards.shape.width)
        except ValueError as error:
            raise UserError(f"SHARDS {shards.pattern}: {error}") from error

    def plan(self) -> dict[str, Any]:
        """Everything that the folder's bytes depend on."""
        from lightning_modules.bases.text import TOKENIZER, file_hash, tokenizer_file

        plan: dict[str, Any] = {"shards": _digest(self.shards), **self.files()}
        if self.takes_text:
            if ENCODER not in plan:
                raise UserError(f"--base {self.name}: it has no {ENCODER}/, expected it as diffusers writes it")
            plan[TOKENIZER] = file_hash(tokenizer_file(self.name, self.revision))
            plan["negative_prompt"] = self.negative_prompt
        return plan

    def files(self) -> dict[str, str]:
        """Name of a network -> fingerprint of its files."""
        from lightning_modules.bases.weight_files import fingerprint

        names = ("vae", "image_encoder", *((ENCODER,) if self.takes_text else ()))
        found = {name: fingerprint(self.name, name, self.revision) for name in names}
        return {name: files for name, files in found.items() if files is not None}

    def run(self, out: Path) -> None:
        """Make what is not there yet; nothing of the networks is loaded for shards that are done."""
        state = out / STATE
        state.mkdir(parents=True, exist_ok=True)
        captions = self.captions(state / TEXT) if self.takes_text else None
        records = [state / f"{number:05d}.json" for number in range(len(self.shards.counts))]
        hashes = state / "hashes.json"
        if not (hashes.exists() and all(record.exists() for record in records)):
            encoder = Encoder(self.base, self.device)
            write_atomic(hashes, json_bytes(encoder.hashes))
            self.make_shards(out, records, encoder, captions)
        self.finish(out, records, folder.read_record(hashes, "delete it, and run the same command"), captions)

    def captions(self, path: Path) -> Captions:
        """Embeddings of all captions, before any other network is read: the text encoder is the largest of them."""
        if not path.exists():
            embed(self.shards, path, self.name, self.revision, self.negative_prompt, str(self.device))
        from datamodules import captions

        return captions.Captions(path, self.shards.digest, self.shards.counts)

    def make_shards(self, out: Path, records: list[Path], encoder: Encoder, captions: Captions | None) -> None:
        """Write the shards that have no record yet, and then their records."""
        with tqdm(total=len(self.shards), desc="cache", unit="clip") as bar:
            for number, record in enumerate(records):
                if record.exists():
                    bar.update(int(self.shards.counts[number]))
                    continue
                done = self.make_shard(number, out / f"{number:05d}.tar", encoder, captions, bar)
                write_atomic(record, json_bytes(done))

    def make_shard(
        self, number: int, path: Path, encoder: Encoder, captions: Captions | None, bar: tqdm
    ) -> dict[str, Any]:
        """Write one shard."""
        done: list[str] = []
        bad: list[dict[str, str]] = []
        with ShardWriter(path) as writer:
            for clip, (key, result) in enumerate(_decoded(self.shards, number)):
                try:
                    members, video = result.result()
                    text = None if captions is None else captions.of(number, clip)
                    writer.write(key, {**members, LATENT: encoder(video, text)})
                    done.append(key)
                except BadClip as error:
                    bad.append({"key": key, "reason": str(error)})
                bar.update()
        report = {"shard": self.shards.path(number).name, "clips": done, "bad": bad}
        return {"entry": writer.entry, "report": report, "tensors": encoder.layout}

    def finish(self, out: Path, paths: list[Path], hashes: dict[str, str], captions: Captions | None) -> None:
        """Write what all clips share, the report and the index."""
        records = [folder.read_record(path, "delete it, and the same command makes its shard again") for path in paths]
        folder.write_report(out, (record["report"] for record in records))
        if captions is not None:
            texts = SetTexts(captions.hashes, captions.empty(), captions.negative(), captions.negative_prompt)
            write_atomic(out / TEXT, pack_texts(texts))
        layout: dict[str, Any] = next((record["tensors"] for record in records if record["tensors"]), {})
        fill = "smooth" if self.shards.filled else "none"
        made = {"tensors": layout, "files": self.files()}
        entries = [record["entry"] for record in records]
        folder.finish(out, self.shards.shape, entries, fill, latents=hashes, cache=made)


def _digest(shards: Shards) -> str:
    sidecars = [[shards.path(number).name, int(count)] for number, count in enumerate(shards.counts)]
    folders = sorted({shards.path(number).parent for number in range(len(shards.counts))})
    indices = [hashlib.sha256((folder / INDEX).read_bytes()).hexdigest() for folder in folders]
    return hashlib.sha256(json_bytes([sidecars, indices])).hexdigest()


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


class Encoder:
    """A base's frozen networks beside its denoiser, in the precision in which trainings use them.

    Args:
        base: Not built.
        device: Where they compute.

    Attributes:
        hashes: Of the networks' weights; training refuses latents of others.
        layout: Name -> dtype and shape of what the clips so far have.
    """

    def __init__(self, base: Any, device: Any) -> None:
        self.device, self.networks = device, base.encoders(device)
        self.hashes: dict[str, str] = self.networks.precomputed_by()
        self.layout: dict[str, Any] = {}
        self.padded = "text" in base.conditionings and base.text_kind().padded

    def __call__(self, video: Any, text: Any = None) -> bytes:
        """(L, 3, H, W) uint8 and the embedding (n, D) of its caption to safetensors, as `precomputed` names them.

        Raises:
            BadClip: a value that the dtype cannot hold.
        """
        import torch
        from safetensors.torch import save

        from lightning_modules.conditioning import to_float

        with exact(torch):
            frames = to_float(torch.from_numpy(video).to(self.device))
            made = self.networks.precomputed(frames[None])
        tensors = {name: tensor[0].cpu().contiguous() for name, tensor in made.items()}
        tensors |= {} if text is None else {"text": text.contiguous()}
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise BadClip(f"{name} has values that {str(tensor.dtype).removeprefix('torch.')} cannot hold")
        self.layout = self.layout or layout_of(tensors, self.padded)
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
