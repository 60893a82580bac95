"""Read a whole set and say what is wrong with it."""

from __future__ import annotations

import hashlib

import numpy as np
from tqdm import tqdm

from datamodules.prepare import pool
from datamodules.shards import CAPTION, FLOW, INDEX, LATENT, MASKS, META, VIDEO, Shards, flow_codec, read_index, samples
from datamodules.shards.cached import TEXT, dtype_of
from datamodules.shards.remote import chunks
from remoco.common.errors import BadClip, UserError, one_line


def verify_shards(pattern: str, workers: int) -> list[str]:
    """One line for each thing that is wrong, in the order of the shards."""
    shards = Shards(pattern)
    faults: dict[int, list[str]] = {}
    with tqdm(total=len(shards), desc="verify", unit="clip") as bar:
        for (_, number), lines in pool.run(_verify_shard, ((pattern, n) for n in range(len(shards.counts))), workers):
            if isinstance(lines, pool.Died):
                lines = [f"{shards.path(number)}: the process that read it died (exit code {lines.exit_code})"]
            faults[number] = lines
            bar.update(int(shards.counts[number]))
    return [*_verify_texts(shards), *(line for number in sorted(faults) for line in faults[number])]


def _verify_texts(shards: Shards) -> list[str]:
    """What is wrong with the texts that all clips share, which lie beside the shards."""
    try:
        texts = shards.texts()
    except UserError as error:
        return [str(error)]
    if texts is None or shards.layout is None:
        return []
    dtype, (_, width) = shards.layout["text"]
    every = [texts.empty] if texts.negative is None else [texts.empty, texts.negative]
    if all(dtype_of(text) == dtype and text.shape[1] == width for text in every):
        return []
    return [f"{shards.pattern}: {TEXT} has other texts than its clips, which are {dtype} of {width} values a token"]


def _verify_shard(task: tuple[str, int], worker: int) -> list[str]:
    pattern, number = task
    try:
        shards = Shards(pattern)
        return [*_verify_file(shards, number), *_verify_clips(shards, number)]
    except (BadClip, UserError, OSError) as error:
        return [one_line(error)]


def _verify_file(shards: Shards, number: int) -> list[str]:
    path = shards.path(number)
    entry = next(item for item in read_index(path.parent / INDEX)["shards"] if item["name"] == path.name)
    content, size = hashlib.sha256(), 0
    for data in chunks(path, entry["bytes"]):
        content.update(data)
        size += len(data)
    digest = content.hexdigest()
    if size != entry["bytes"]:
        return [f"{path}: {size} bytes, expected {entry['bytes']}"]
    return [] if digest == entry["sha256"] else [f"{path}: SHA-256 differs from {INDEX}"]


def _verify_clips(shards: Shards, number: int) -> list[str]:
    lines = []
    for clip in range(int(shards.counts[number])):
        fault = _fault(shards, number, clip)
        if fault:
            lines.append(f"{shards.path(number)}: {shards.key(number, clip)}: {fault}")
    return lines


def _fault(shards: Shards, number: int, clip: int) -> str | None:
    try:
        latents = (LATENT,) if shards.latent_hashes else ()
        members = shards.read(number, clip, (VIDEO, FLOW, MASKS, CAPTION, META, *latents))
        sample = samples.decode(members, shards.shape, shards.layout)
        meta = samples.read_meta(members[META], shards.shape)
        filled, bound = meta["flow"]["fill"] != "none", meta["flow"]["bound"]
        if bound != meta["flow"]["step"]:
            return f"json has flow bound {bound} at step {meta['flow']['step']}"
        if filled and not shards.filled:
            return f"json has flow fill {meta['flow']['fill']!r}, {INDEX} says none"
        flow = flow_codec.to_pixels(sample["flow"], meta["flow"]["step"]).astype(np.float64)
        squared = (flow**2).sum(1)
        off = bound * 2**0.5 + 1e-3  # the most by which a displacement's length is stored wrong
        magnitude = float(np.sqrt(squared).mean())
        if not filled and abs(magnitude - meta["flow"]["mean_magnitude"]) > off:
            return f"mean flow is {magnitude:.6g} px, json says {meta['flow']['mean_magnitude']}"
        for norm, moving in zip(("l2", "squared"), sample["moving"]):
            average = (np.sqrt(squared) if norm == "l2" else squared).mean(0)
            sure = sample["visibility"].all(0) & (abs(average - 1) > (off if norm == "l2" else 3 * off))
            if (moving != (average > 1))[sure].any():
                return f"motion mask {norm!r} is not that of the flow"
    except (BadClip, KeyError, TypeError) as error:
        return one_line(error)
    return None
