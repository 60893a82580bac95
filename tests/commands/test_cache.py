"""Cached latents: what the networks say of the shard's own pixels, resumable, keyed by the weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load

from datamodules.scenes.clips import sprite
from datamodules.shards import LATENT, MEMBERS, ClipShape, Shards, samples, write_index
from datamodules.shards.writer import ShardWriter
from lightning_modules.bases import SVD
from lightning_modules.bases.weights import weights_hash
from remoco import cache
from tests.support.commands import prepare as run
from tests.support.nets import random_svd


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    """Folder of a tiny SVD in diffusers' layout, and the networks."""
    folder, networks = tmp_path_factory.mktemp("svd"), random_svd("tiny", seed=1)
    for name in ("unet", "vae", "image_encoder"):
        getattr(networks, name).save_pretrained(folder / name)
    return folder, networks.eval()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, shape = tmp_path_factory.mktemp("shards"), ClipShape(4, 64, 64, 8.0)
    entries = []
    for number in range(3):
        with ShardWriter(folder / f"{number:05d}-000.tar") as writer:
            for clip in range(2):
                writer.write(f"clip-{number}-{clip}", sprite(shape, [number, clip]))
        entries.append(writer.entry)
    write_index(folder, shape, entries)
    return folder


@pytest.fixture(scope="module")
def cached(svd, shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("cached") / "out"
    assert run("cache", shards, out, "--base", svd[0]) == 0
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_latents_are_the_networks_of_the_shards_pixels(svd, shards, cached):
    networks, before, after = svd[1], Shards(str(shards)), Shards(str(cached))
    assert after.counts.tolist() == [2, 2, 2]
    for shard in range(3):
        for clip in range(2):
            assert after.read(shard, clip, MEMBERS) == before.read(shard, clip, MEMBERS)
            assert after.key(shard, clip) == before.key(shard, clip)
            found = load(after.read(shard, clip, [LATENT])[LATENT])
            assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
                "latent_mean": (4, 4, 8, 8), "latent_std": (4, 4, 8, 8), "image_embedding": (1, 32),
            }  # fmt: skip
            assert {tensor.dtype for tensor in found.values()} == {torch.float16}
            video = torch.from_numpy(samples.decode(before.read(shard, clip, MEMBERS), before.shape)["video"])
            mean, std = (part[0] for part in networks.encode(video[None] / 127.5 - 1))
            embedding = networks.embed_image(video[:1] / 127.5 - 1)[0]
            for name, expected in (("latent_mean", mean), ("latent_std", std)):
                assert torch.allclose(found[name].float(), expected, rtol=2e-3, atol=1e-4)
            unit = 2**-8  # the image encoder runs in bfloat16, as the recipe trains
            assert torch.allclose(found["image_embedding"].float(), embedding, rtol=16 * unit, atol=16 * unit)
    clips = [after.read(s, c, [LATENT])[LATENT] for s in range(3) for c in range(2)]
    assert len(set(clips)) == 6


def test_the_index_names_the_weights(svd, cached):
    _, networks = svd
    expected = {"vae": weights_hash(networks.vae), "image_encoder": weights_hash(networks.image_encoder)}
    assert json.loads((cached / "index.json").read_bytes())["latents"] == expected
    assert Shards(str(cached)).latent_hashes == expected


def test_verify_reads_latents(cached, tmp_path, capsys):
    assert run("verify", cached, "--workers", 1) == 0
    broken = tmp_path / "broken"
    shutil.copytree(cached, broken)
    offset, size, _ = json.loads((broken / "00001.index.json").read_bytes())["members"][LATENT][1]
    (broken / "00001.tar").chmod(0o644)
    data = bytearray((broken / "00001.tar").read_bytes())
    data[offset + size // 2] ^= 1
    (broken / "00001.tar").write_bytes(data)
    capsys.readouterr()
    assert run("verify", broken, "--workers", 1) == 1
    assert "latent.safetensors has changed" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_and_changes_no_byte(svd, shards, cached, tmp_path, monkeypatch):
    real, calls = cache.Encoder.__call__, []

    def dies_at_the_fourth(self, *given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *given)

    out = tmp_path / "o"
    monkeypatch.setattr(cache.Encoder, "__call__", dies_at_the_fourth)
    assert run("cache", shards, out, "--base", svd[0]) == 130
    assert [path.name for path in out.glob("*.tar")] == ["00000.tar"] and not list(out.glob(".*.tmp"))
    assert run("cache", shards, out, "--base", svd[0]) == 0
    assert len(calls) == 4 + 4 and contents(out) == contents(cached)
    (out / ".cache").mkdir()  # as a kill leaves it that comes after the index
    assert run("cache", shards, out, "--base", svd[0]) == 0 and len(calls) == 8
    assert not (out / ".cache").exists()


def test_the_old_name_is_one_line(shards, tmp_path, capsys):
    assert run("latents", shards, tmp_path / "x", "--svd", "svd") == 2
    assert capsys.readouterr().err == (
        "remoco latents: error: it is `remoco cache` now, for every base, and its --svd is --base\n"
    )


def test_other_weights_or_another_folder_are_refused(svd, shards, cached, tmp_path, capsys):
    other = tmp_path / "svd"
    shutil.copytree(svd[0], other)
    random_svd("tiny", seed=2).vae.save_pretrained(other / "vae")
    for arguments, message in [
        ((shards, cached, "--base", other), "begun otherwise: vae is another; give another folder"),
        ((shards, svd[0], "--base", svd[0]), "is not empty and holds no cache.json"),
        ((shards, tmp_path / "x", "--base", tmp_path / "none"), "config.json not found"),
        ((tmp_path / "none", tmp_path / "x", "--base", svd[0]), "nothing matches"),
        ((shards, tmp_path / "x"), "--base is missing"),
    ]:
        assert run("cache", *arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("remoco cache: error: ") and message in error


def test_clips_that_do_not_read_are_left_out_and_listed(svd, shards, tmp_path, capsys):
    broken, out = tmp_path / "broken", tmp_path / "o"
    shutil.copytree(shards, broken)
    offset = json.loads((broken / "00001-000.index.json").read_bytes())["members"]["mp4"][0][0]
    (broken / "00001-000.tar").chmod(0o644)
    data = bytearray((broken / "00001-000.tar").read_bytes())
    data[offset + 100] ^= 1
    (broken / "00001-000.tar").write_bytes(data)
    assert run("cache", broken, out, "--base", svd[0]) == 0
    said = capsys.readouterr().out
    assert "5 clips with latents" in said and "left out: 1, see " in said
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    assert [line["shard"] for line in lines] == [f"0000{n}-000.tar" for n in range(3)]
    assert [len(line["clips"]) for line in lines] == [2, 1, 2] and not lines[0]["bad"] and not lines[2]["bad"]
    (bad,) = lines[1]["bad"]
    assert bad["key"] == "clip-1-0" and "has changed since it was written" in bad["reason"]
    assert f"  00001-000.tar clip-1-0: {bad['reason']}" in said.splitlines()
    assert Shards(str(out)).counts.tolist() == [2, 1, 2] and run("verify", out, "--workers", 1) == 0


def test_values_that_float16_cannot_hold_are_a_bad_clip(svd):
    from remoco.common.errors import BadClip

    encoder = cache.Encoder(SVD(svd[0]), torch.device("cpu"))
    with torch.no_grad():
        encoder.networks.vae.quant_conv.bias[0] = 1e6
    with pytest.raises(BadClip, match="latent_mean has values that float16 cannot hold"):
        encoder(np.zeros((2, 3, 32, 48), dtype=np.uint8))


@pytest.mark.gpu
def test_the_gpu_gives_the_same_latents_each_time_and_nearly_the_cpus(svd, shards):
    video = samples.decode(Shards(str(shards)).read(0, 0, MEMBERS), Shards(str(shards)).shape)["video"]
    encoder = cache.Encoder(SVD(svd[0]), torch.device("cuda"))
    assert encoder(video) == encoder(video)
    here, there = load(cache.Encoder(SVD(svd[0]), torch.device("cpu"))(video)), load(encoder(video))
    for name in here:
        assert torch.allclose(here[name].float(), there[name].float(), rtol=2e-3, atol=1e-3)
