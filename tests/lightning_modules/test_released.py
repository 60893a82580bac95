"""Released files: names both ways, errors, conversion to our files and back."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules.bases import SVD
from lightning_modules.process.base import randn
from lightning_modules.released import (
    Architecture,
    build,
    load_adapter,
    load_released,
    names,
    read_tensors,
    released_tensors,
    take_apart,
)
from lightning_modules.released.encoders import (
    image_encoder_from_released,
    image_encoder_to_released,
    vae_from_released,
    vae_to_released,
)
from remoco.common.errors import UserError
from remoco.released import export
from tests.support.commands import remoco
from tests.support.nets import random_svd, with_lora
from tests.support.parity import FIXTURES, ParitySet, clip_model, identity_quant_conv


def test_full_size_map_is_a_bijection():
    shapes = json.loads(gzip.decompress((FIXTURES / "official_full_keys.json.gz").read_bytes()))
    shapes = {name.removeprefix("model.diffusion_model."): tuple(shape) for name, shape in shapes.items()}
    architecture = Architecture.of(shapes)
    table = names(architecture)
    assert len(table) == 2476
    assert {name: shape for name, (_, _, shape) in table.items()} == shapes
    assert len({(part, ours) for part, ours, _ in table.values()}) == 2476
    assert Counter(part for part, _, _ in table.values()) == {
        "unet": 1428,
        "lora": 928,
        "motion_encoder": 40,
        "injection": 80,
    }
    with torch.device("meta"):
        stock = random_svd("full").unet
        state = {ours: shape for part, ours, shape in table.values() if part == "unet"}
        assert state == {name: tuple(t.shape) for name, t in stock.state_dict().items()}
        assert architecture == Architecture.from_unet(stock.config, "linear", 32)
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert released_tensors(take_apart(meta)).keys() == shapes.keys()


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [("module.model.diffusion_model.", ".safetensors"), ("model.diffusion_model.", ".pt"), ("", ".safetensors")],
)
def test_files_of_any_prefix_are_read(parity, tmp_path, prefix, suffix):
    path = tmp_path / f"released{suffix}"
    state = {prefix + name.removeprefix("module.model.diffusion_model."): t for name, t in parity.weights.items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    released = load_released(path, head_channels=8)
    assert {f"{prefix}{name}": t for name, t in released_tensors(released).items()}.keys() == state.keys()
    for name, tensor in released_tensors(released).items():
        assert torch.equal(tensor, state[prefix + name])


def test_wrong_tensors_are_listed_and_nothing_is_loaded(parity, tmp_path):
    weights = dict(parity.weights)
    prefix = "module.model.diffusion_model."
    weights[f"{prefix}surprise.weight"] = torch.zeros(1)
    del weights[f"{prefix}middle_block.0.in_layers.2.bias"]
    weights[f"{prefix}flow_blocks.1.2.bias"] = torch.zeros(5)
    path = ParitySet(parity.config, weights, {}).write(tmp_path)
    with pytest.raises(UserError) as error:
        load_released(path)
    message = str(error.value)
    assert (
        "1 unknown: surprise.weight; 1 missing: middle_block.0.in_layers.2.bias; 1 misshapen: flow_blocks.1.2.bias (5,)"
        in message
    )
    assert "nothing loaded" in message and "\n" not in message


def test_a_file_that_is_no_network(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="no network in the released layout"):
        load_released(path)
    path.write_bytes(b"not a file")
    with pytest.raises(UserError, match=r"cannot read .*other.safetensors"):
        load_released(path)
    with pytest.raises(UserError, match=r"no file .*absent.pt"):
        load_released(tmp_path / "absent.pt")


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"module": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="cannot read"):
        load_released(tmp_path / "bad.pt")
    assert not (tmp_path / "executed").exists()


def test_head_channels_come_from_the_json_beside(parity, released_file):
    assert load_released(released_file).architecture.head_channels == 8
    assert load_released(released_file, head_channels=16).architecture.head_channels == 16
    released_file.with_suffix(".json").unlink()
    assert load_released(released_file).architecture.unet_config()["num_attention_heads"] == (
        1,
        2,
        2,
        2,
    )  # 64 as released
    with pytest.raises(UserError, match="num_head_channels"):
        load_released(released_file, head_channels=48)


def test_build_copies_the_weights(released_file):
    released = load_released(released_file)
    network = build(released)
    trained = {n for part in network.parts().values() for n, p in part.named_parameters() if p.requires_grad}
    assert not any("base_layer" in name or name.startswith("conv_in") for name in trained)
    before = released.motion_encoder["stem.norms.0.weight"].clone()
    network.motion_encoder.stem.norms[0].weight.data.zero_()
    assert torch.equal(released.motion_encoder["stem.norms.0.weight"], before)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_convert_and_export_are_inverse_bit_for_bit(whole_file, tmp_path, suffix, capsys):
    out = tmp_path / f"again{suffix}"
    assert remoco("convert", str(whole_file), str(tmp_path / "ours"), "--base") == 0
    assert remoco("export", str(tmp_path / "ours"), str(out)) == 0
    original, again = read_tensors(whole_file), read_tensors(out)
    assert original.keys() == again.keys()
    assert all(
        torch.equal(original[name], again[name]) and original[name].dtype == again[name].dtype for name in original
    )
    assert f"{len(original)} tensors" in capsys.readouterr().out


def test_converted_base_loads_as_svd(whole_file, tmp_path):
    assert remoco("convert", str(whole_file), str(tmp_path / "ours"), "--base") == 0
    svd = SVD(tmp_path / "ours").build()
    released = load_released(whole_file)
    assert all(torch.equal(t, released.unet[name]) for name, t in svd.unet.state_dict().items())
    assert svd.unet.config.num_attention_heads == [8, 16, 16, 16]
    tiny = random_svd("tiny", seed=4)
    tiny.vae.load_state_dict(identity_quant_conv(tiny.vae.state_dict()))
    frames = randn([0], (2, 3, 32, 32))[0]
    assert torch.equal(svd.encode(frames[None]).mean, tiny.encode(frames[None]).mean)
    pixels = randn([1], (2, 3, 16, 16))[0]
    with torch.no_grad():
        assert torch.equal(svd.image_encoder(pixels).image_embeds, clip_model()(pixels).image_embeds)


def test_export_looks_at_its_base_before_it_builds(whole_file, tmp_path):
    """A configuration that asks for more than its weights is one line, and nothing is written."""
    assert remoco("convert", str(whole_file), str(tmp_path), "--base") == 0
    config = tmp_path / "unet" / "config.json"
    asked = json.loads(config.read_text())
    for change in ({"layers_per_block": 4000}, {"cross_attention_dim": 2**20}, {"sample_size": 10**40}):
        config.write_text(json.dumps(asked | change))
        with pytest.raises(UserError, match=f"base {tmp_path}: .*config.json") as error:
            export(str(tmp_path), str(tmp_path / "out.pt"))
        assert "\n" not in str(error.value) and not (tmp_path / "out.pt").exists()


def test_adapter_goes_into_modules_and_nothing_else_does(released_file, tmp_path):
    assert remoco("convert", str(released_file), str(tmp_path)) == 0
    adapter = tmp_path / "adapter.safetensors"
    assert not (tmp_path / "unet").exists()
    released = load_released(released_file)
    network = build(released)
    for part in (network.motion_encoder, network.injection):
        for p in part.parameters():
            p.data.zero_()
    load_adapter(adapter, network.unet, network.motion_encoder, network.injection)
    state = network.motion_encoder.state_dict()
    assert all(torch.equal(state[name], t) for name, t in released.motion_encoder.items())
    broken = load_file(adapter)
    broken["motion_encoder.stem.norms.0.bias"] = torch.ones(1)
    broken.pop("unet.time_embedding.linear_1.lora_A.weight")
    save_file(broken, adapter)
    network.injection.down[0].norm.weight.data.fill_(7)
    with pytest.raises(UserError, match="1 missing: lora.time_embedding.linear_1.*1 misshapen"):
        load_adapter(adapter, network.unet, network.motion_encoder, network.injection)
    assert (network.injection.down[0].norm.weight == 7).all()


def test_a_checkpoint_with_attention_lora_is_exported_with_a_start_elsewhere(released_file, tmp_path, capsys):
    """What the paper's recipe trains runs in the released code: same network, LoRA on every linear layer."""
    assert remoco("convert", str(released_file), str(tmp_path), "--base") == 0
    network = build(load_released(released_file))
    unet = random_svd("tiny").unet.from_config(json.loads((tmp_path / "unet/config.json").read_text()))
    with_lora(unet, "attention", rank=4, seed=3)
    trained = {f"svd.unet.{n}": p.detach() for n, p in unet.named_parameters() if ".lora_" in n}
    for part in ("motion_encoder", "injection"):
        trained |= {f"{part}.{n}": p.detach() for n, p in network.parts()[part].named_parameters()}
    torch.save({"state_dict": trained, "global_step": 3}, tmp_path / "last.ckpt")
    capsys.readouterr()
    export(str(tmp_path / "last.ckpt"), str(tmp_path / "out.pt"), base=str(tmp_path))
    assert f"{len(names(load_released(released_file).architecture))} tensors" in capsys.readouterr().out
    exported = load_released(tmp_path / "out.pt", head_channels=8)
    assert exported.architecture.lora == "linear"
    assert not exported.lora["time_embedding.linear_1.lora_B.default.weight"].any()
    # with A = 0 too, no gradient would ever move either
    assert all(t.any() for name, t in exported.lora.items() if ".lora_A." in name)
    export(str(tmp_path / "last.ckpt"), str(tmp_path / "again.pt"), base=str(tmp_path))
    again = load_released(tmp_path / "again.pt", head_channels=8)
    assert all(torch.equal(t, again.lora[name]) for name, t in exported.lora.items())
    for name, tensor in trained.items():
        if name.startswith("svd.unet."):
            assert torch.equal(exported.lora[name.removeprefix("svd.unet.")], tensor)


def test_other_injections_have_no_place_in_the_released_layout(released_file, tmp_path):
    assert remoco("convert", str(released_file), str(tmp_path), "--base") == 0
    state = load_file(tmp_path / "adapter.safetensors")
    concat = {name: t for name, t in state.items() if not name.startswith("injection.")}
    save_file(concat | {"injection.down.0.project.weight": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(UserError, match=r"1 unknown: injection.down.0.project.weight; 80 missing"):
        export(str(tmp_path), str(tmp_path / "out.pt"))
    assert not (tmp_path / "out.pt").exists()


def test_a_folded_quant_conv_encodes_the_same():
    vae = random_svd("tiny", seed=1).vae.double()
    vae.quant_conv.bias.data.fill_(0.3)
    config, state = vae_from_released(vae_to_released(vae.state_dict()))
    again = random_svd("tiny", seed=2).vae.double()
    again.load_state_dict(state)
    frames = randn([0], (1, 3, 32, 32))[0].double()
    with torch.no_grad():
        torch.testing.assert_close(again.encode(frames).latent_dist.mean, vae.encode(frames).latent_dist.mean)


def test_full_size_vae_and_image_encoder_have_the_released_counts():
    with torch.device("meta"):
        svd = random_svd("full")
        vae = vae_to_released_names(svd)
        clip = image_encoder_to_released(svd.image_encoder.state_dict())
        assert len(vae) == 372
        assert vae["decoder.up.0.block.2.time_stack.in_layers.2.weight"] == (128, 128, 3, 1, 1)
        assert vae["decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
        assert vae["decoder.conv_out.time_mix_conv.weight"] == (3, 3, 3, 1, 1)
        assert vae["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
        assert clip["open_clip.model.visual.transformer.resblocks.31.attn.in_proj_weight"].shape == (3840, 1280)
        assert clip["open_clip.model.visual.proj"].shape == (1280, 1024)
        config, state, rest = image_encoder_from_released(clip)
        assert {k: t.shape for k, t in state.items()} == {k: t.shape for k, t in svd.image_encoder.state_dict().items()}
        assert config["num_attention_heads"] == 16 and config["image_size"] == 224 and not rest


def vae_to_released_names(svd: SVD) -> dict[str, tuple[int, ...]]:
    state = {name: t for name, t in svd.vae.state_dict().items() if not name.startswith("quant_conv")}
    with torch.device("cpu"):
        state |= {"quant_conv.weight": torch.eye(8).view(8, 8, 1, 1), "quant_conv.bias": torch.zeros(8)}
    return {name: tuple(t.shape) for name, t in vae_to_released(state).items()}


def test_command_line_errors_are_one_line(tmp_path):
    command = [sys.executable, "-m", "remoco", "convert", str(tmp_path / "none.pt"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1] == (
        f"remoco convert: error: released: no file {tmp_path / 'none.pt'}"
    )
    assert "Traceback" not in result.stderr
