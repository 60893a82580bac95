"""Wan-Move's and ATI's transformers: read under their names, given motion as theirs, sampled, trained on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from conditions import RegionWise
from lightning_modules import MotionControlModule
from lightning_modules.bases import RandomWan, Wan
from lightning_modules.bases.wan.peers import PEERS, diffusers_names
from lightning_modules.config import Control, Noise, Sampling, Start
from lightning_modules.layers import seeded
from lightning_modules.optimizer import Plan, adamw
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from remoco.systems import SystemChoice, fingerprint
from tests.support import wan, wan_peers
from tests.support.commands import remoco
from tests.support.modules import data, draw, trainer
from tests.support.same import same

SIZE = {"height": 32, "width": 48}


@pytest.fixture(scope="module")
def theirs():
    """The transformer that stands for theirs."""
    return RandomWan("tiny_i2v", 7).build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base without the weights of its own transformer, which nobody needs."""
    made = wan.write(tmp_path_factory.mktemp("wan") / "tiny")
    (made / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"proj_out.weight": "diffusion_pytorch_model-00001-of-00014.safetensors"}}
    (made / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return made


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    return wan_peers.write(tmp_path_factory.mktemp("peer") / "model.safetensors", theirs.transformer)


def module(folder, start, *kinds, lora=None, **base):
    kinds = kinds or (PEERS[start.kind].injection,)
    return MotionControlModule(
        Wan(folder, **base), RegionWise(min_mask_ratio=0.5), Control([*kinds], lora, 2), Noise(dropout=0.5),
        Sampling(2, guidance=(3.0, 3.0)), start=start,
    )  # fmt: skip


@pytest.mark.parametrize("image", [True, False])
def test_names_are_those_of_wans_own_code(image):
    with torch.device("meta"):
        made = WanTransformer3DModel(**{
            "num_layers": 12, "num_attention_heads": 1, "attention_head_dim": 12, "in_channels": 36, "ffn_dim": 8,
            **({"image_dim": 16, "added_kv_proj_dim": 12} if image else {}),
        })  # fmt: skip
    wanted = {name: wan_peers.original(name) for name in made.state_dict()}
    assert diffusers_names(wanted.values()) == wanted
    prefixed = {name: f"model.diffusion_model.{theirs}" for name, theirs in wanted.items()}
    assert diffusers_names(prefixed.values()).keys() == wanted.keys()


@pytest.mark.parametrize("parts", [1, 3])
def test_it_takes_the_place_of_the_bases_transformer(folder, theirs, tmp_path, parts):
    """Of the base's own nothing is read but its configuration; the rest is the base's."""
    path = wan_peers.write(tmp_path / "model.safetensors", theirs.transformer, parts)
    net = module(folder, Start("wan_move", str(path)))
    net.configure_model(torch.bfloat16)
    assert net.base.hashes["transformer"] == theirs.hashes["transformer"]
    own = RandomWan("tiny_i2v", 3).build()
    assert all(net.base.hashes[name] == own.hashes[name] for name in ("vae", "image_encoder"))
    wanted = RandomWan("tiny_i2v", 7).build(torch.bfloat16).transformer.state_dict()
    assert same(dict(net.base.transformer.state_dict()), dict(wanted))
    assert {name: p.dtype for name, p in net.base.transformer.named_parameters()} == {
        name: value.dtype for name, value in wanted.items()
    }
    assert net.base.identity["peer"] == {"kind": "wan_move", "file": str(path)}


def changed(file, to, change):
    state = load_file(file)
    change(state)
    save_file(state, to)
    return to


NAME = "blocks.1.self_attn.q.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda state: state.pop(NAME), "1 weights .* missing or misshapen and 0 are unknown, .*blocks.1.attn1.to_q"),
        (lambda state: state.update({NAME: state[NAME][:, :8].clone()}), "1 weights .* misshapen and 0 are unknown"),
        (lambda state: state.update({"scale_weight": torch.ones(1)}), "0 weights .* 1 are unknown, .*scale_w"),
        (lambda state: state.update({"motion_encoder.enc.fc.0.bias": torch.ones(1)}), "unknown|another network"),
        (lambda state: state.update({f"model.diffusion_model.{NAME}": state[NAME] + 1}), "one layer under two"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_line(folder, file, tmp_path, change, said):
    """Before VAE and encoders are read."""
    path = changed(file, tmp_path / "wrong.safetensors", change)
    with mock.patch("lightning_modules.bases.wan.base.load", side_effect=AssertionError):
        with pytest.raises(UserError, match=rf"^start\.file: {path}: .*({said})") as caught:
            module(folder, Start("ati", str(path))).configure_model()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_weights_that_are_not_finite_are_one_line(folder, file, tmp_path):
    path = changed(file, tmp_path / "wrong.safetensors", lambda state: state[NAME].fill_(torch.nan))
    with pytest.raises(UserError, match=rf"^start\.file: {path}: {NAME} holds NaN or infinite values$"):
        module(folder, Start("ati", str(path))).configure_model()


def test_other_files_bases_and_injections_are_one_line(folder, file, tmp_path):
    (tmp_path / "model.pth").write_bytes(b"\x80\x04")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "empty").mkdir()
    ti2v = wan.write(tmp_path / "ti2v", "tiny_ti2v")
    cases = [
        (lambda: Start("wan", str(file)), r"^start\.kind is 'wan', expected one of adapter, .*wan_move, ati"),
        (lambda: Start("ati", str(tmp_path / "no")), r"^start\.file: no file .*expected a safetensors file"),
        (lambda: built(tmp_path / "model.pth"), r"^start\.file: .*model\.pth is no safetensors file"),
        (lambda: built(tmp_path / "broken.safetensors"), r"^start\.file: .*broken\.safetensors"),
        (lambda: built(tmp_path / "bin"), r"^start\.file: .*pytorch_model\.bin alone, a pickle"),
        (lambda: built(tmp_path / "empty"), r"^start\.file: no diffusion_pytorch_model\.safetensors"),
        (lambda: built(tmp_path), r"^start\.file: .*model\.pth alone, a pickle"),
        (lambda: module(folder, Start("wan_move", str(file)), "modulation"), "^model.start: wan_move was .* latent, "),
        (lambda: module(folder, Start("ati", str(file)), "latent"), "^model.start: ati was trained with latent_soft"),
        (lambda: module(ti2v, Start("ati", str(file))), "^control.injection: latent_soft .*expected Wan 2.1"),
        (lambda: MotionControlModule(RandomWan(), RegionWise(), Control(["latent"], None), start=Start("wan_move", str(
            file))), "^model.start: wan_move takes the place .*not RandomWan"),
        (lambda: MotionControlPipeline.from_checkpoint(f"wan_move:{file}"), "^wan_move: expected --svd"),
        (lambda: MotionControlPipeline.from_checkpoint(f"ati:{file}", folder, second="a"), "^second: ati has no other"),
        (lambda: MotionControlPipeline.from_pretrained("ati:/no/file"), r"^start\.file: no file /no/file"),
    ]  # fmt: skip

    def built(path):
        module(folder, Start("wan_move", str(path))).configure_model()

    for case, said in cases:
        with pytest.raises(UserError, match=said) as caught:
            case()
        assert "\n" not in str(caught.value)


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (32, 48, 3), np.uint8)


@pytest.mark.parametrize("kind", PEERS)
def test_it_generates_without_a_checkpoint(folder, file, tmp_path, kind):
    """In Python and by the command; what is drawn moves it."""
    pipe = MotionControlPipeline.from_checkpoint(f"{kind}:{file}", svd=str(folder))
    net = pipe.module
    assert net.control == Control([PEERS[kind].injection], None) and net.process.shift == PEERS[kind].shift
    assert (net.sampling.steps, net.sampling.guidance, net.sampling.solver) == (40, (5.0, 5.0), "unipc")
    assert pipe.sampling["num_frames"] == 81 and pipe.trained_size == (480, 832)
    call = {**SIZE, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}
    made = [pipe(picture(), [[(12, 12), end]], **call).frames for end in ((40, 12), (12, 28), (40, 12))]
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])
    pipe.save_pretrained(tmp_path / "saved")
    again = MotionControlPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(picture(), [[(12, 12), (40, 12)]], **call).frames, made[0])
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"traj_key_points": [[[12, 12], [40, 12]]]}))
    command = ["generate", f"{kind}:{file}", tmp_path / "a.png", "--tracks", tmp_path / "a.json", "--svd", folder]
    more = ["--num-frames", 5, "--steps", 1, "--height", 32, "--width", 48, "--device", "cpu"]
    assert remoco(*command, *more, "--prompt", "red dog", "--out", tmp_path / "a.mp4") == 0
    assert (tmp_path / "a.mp4").stat().st_size


def test_it_is_trained_on_resumed_and_read_again(folder, file, tmp_path):
    """LoRA and modulation over it; the checkpoint names the file, and is refused where it is another or gone."""
    kept = tmp_path / "kept.safetensors"
    shutil.copy(file, kept)

    def fresh():
        made = module(folder, Start("wan_move", str(kept)), "modulation", "latent", lora="attention")
        made.plan = Plan(adamw(lr=1e-2))
        return made

    clips = {"frames": 5, "clips": 4, "val_clips": 2}
    for name, cuts in (("whole", [2]), ("parts", [1, 2])):
        (tmp_path / name).mkdir()
        for steps in cuts:
            path = tmp_path / name / "last.ckpt"
            again = {"ckpt_path": str(path), "weights_only": True} if path.exists() else {}
            trainer(tmp_path / name, steps).fit(fresh(), data(tmp_path, **clips), **again)
    last = tmp_path / "whole" / "last.ckpt"
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert same(one["state_dict"], other["state_dict"]) and same(one["optimizer_states"], other["optimizer_states"])
    assert one["remoco"]["base"]["peer"] == {"kind": "wan_move", "file": str(kept)}
    for where in ({}, {"svd": str(folder)}):
        pipe = MotionControlPipeline.from_checkpoint(last, **where)
        assert pipe.module.start == Start("wan_move", str(kept))
        pipe(picture(), [[(9, 9), (40, 9)]], **SIZE, num_frames=5, output_type="latent")
    changed(file, kept, lambda state: state[NAME].add_(1))
    with pytest.raises(UserError, match="trained over other base weights") as caught:
        MotionControlPipeline.from_checkpoint(last)
    kept.unlink()
    with pytest.raises(UserError, match=f"its transformer is {kept}, which is not on this disk") as gone:
        MotionControlPipeline.from_checkpoint(last, svd=str(folder))
    assert "\n" not in str(caught.value) + str(gone.value)


def test_a_record_names_no_file_of_another_kind_or_place(folder, file, tmp_path):
    pipe = MotionControlPipeline.from_checkpoint(f"ati:{file}", svd=str(folder))
    pipe.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "motion_control.json"
    record = json.loads(path.read_text())
    for peer, said in (
        ({"kind": "ati", "file": "//host/file"}, "which is not on this disk"),
        ({"kind": "pickle", "file": str(file)}, r"base\.peer is"),
        ({"kind": "ati"}, r"base\.peer is"),
        (["ati", str(file)], r"base\.peer is"),
        ({"kind": ["ati"], "file": str(file)}, r"base\.peer is"),
    ):
        path.write_text(json.dumps({**record, "base": {**record["base"], "peer": peer}}))
        with pytest.raises(UserError, match=said) as caught:
            MotionControlPipeline.from_pretrained(tmp_path / "saved")
        assert "\n" not in str(caught.value)


def test_clips_of_other_weights_of_the_same_name_have_another_fingerprint(file, tmp_path):
    kept = tmp_path / "kept.safetensors"
    shutil.copy(file, kept)
    choice = SystemChoice("remoco", f"ati:{kept}", {"svd": str(tmp_path)})
    before = fingerprint(choice)
    assert before == fingerprint(choice)
    changed(file, kept, lambda state: state[NAME].add_(1))
    assert fingerprint(choice) != before


def attention(q, k, v, k_lens=None, **_):
    """What their `flash_attention` computes, in any dtype."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class Sines(torch.nn.Module):
    """Sines and cosines of a time, of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, time):
        return self.function(16, time)


def model_of(checkout: Path) -> ModuleType:
    """Their `wan/modules/model.py` without its asserts, which ask for float32, and with `attention` for a GPU's."""
    package, stub = ModuleType("peer"), ModuleType("peer.attention")
    package.__path__, package.__spec__ = [], ModuleSpec("peer", None, is_package=True)
    stub.flash_attention = attention
    module = ModuleType("peer.model")
    module.__package__ = "peer"
    source = (checkout / "wan" / "modules" / "model.py").read_text()
    with mock.patch.dict(sys.modules, {"peer": package, "peer.attention": stub, "peer.model": module}):
        exec(compile(source, "model.py", "exec", optimize=1), module.__dict__)
    return module


@pytest.mark.parametrize("checkout", ["WAN_MOVE", "ATI"])
@pytest.mark.filterwarnings("ignore")
def test_the_network_is_theirs(checkout):
    """diffusers' transformer under renamed weights, against their own code, float64, casts lifted on both sides."""
    if checkout not in os.environ:
        pytest.skip(f"{checkout} names no checkout")
    sizes = {"num_layers": 3, "ffn_dim": 48, "freq_dim": 16, "text_dim": 16}
    with seeded(4), wan.lifted():  # the tables of the rotary embedding too
        ours = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=36, out_channels=16, image_dim=1280,
            added_kv_proj_dim=24, **sizes,
        ).double()  # fmt: skip
        for p in ours.parameters():  # biases and norms too
            p.data = p.data + 0.1 * torch.randn_like(p)
    own = model_of(Path(os.environ[checkout]))
    theirs = own.WanModel(model_type="i2v", in_dim=36, dim=24, out_dim=16, num_heads=2, **sizes).double()
    # diffusers' sines of the time are of float32 frequencies, theirs of float64 ones: shared
    ours.condition_embedder.timesteps_proj = Sines(own.sinusoidal_embedding_1d)
    theirs.load_state_dict({wan_peers.original(name): value for name, value in ours.state_dict().items()})
    theirs.eval(), ours.eval()
    x, y, text, image = draw(16, 3, 4, 6), draw(20, 3, 4, 6, seed=1), draw(9, 16, seed=2), draw(1, 257, 1280, seed=3)
    time = torch.tensor([617.0]).double()
    with wan.lifted(), torch.no_grad():
        wanted = theirs([x], time, [text], 18, clip_fea=image, y=[y])[0]
        padded = F.pad(text, (0, 0, 0, 503))[None]
        found = ours(torch.cat([x, y])[None], time, padded, image, return_dict=False)[0][0]
    difference = (found - wanted).abs().max().item()
    print(f"{checkout}: largest difference {difference:.1e} of {wanted.abs().max():.2f}")
    assert difference < 1e-9 and wanted.abs().max() > 0.1
