"""Files of weights from strangers: one line, no module built, at most 1 GB and twice the file above an idle start."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from lightning_modules import embedded
from lightning_modules.bases import Sprites
from lightning_modules.pipeline import RECORD, WEIGHTS
from remoco.common.tensor_files import read_saved
from tests.support import strangers
from tests.support.forks import Forks

GB = 1 << 30


@pytest.fixture(scope="module")
def forks():
    with Forks("tests.support.strangers") as running:
        yield running


@pytest.fixture
def refused(forks, tmp_path):
    def check(door, path, named, names_file=True):
        size = sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())
        code = forks.run("measured", str(tmp_path / "out.json"), door, str(path))
        assert code == 0, f"{door}: ended with {code}: {forks.said[-2000:]}"
        found = json.loads((tmp_path / "out.json").read_text())
        said = found["error"] or forks.said.strip()
        assert found["code"] == 2 and "\n" not in said, said
        assert re.search(named, said), said
        assert len(said) < 2000 and not found["built"]
        assert found["taken"] <= GB + 2 * size, f"{found['taken'] / GB:.2f} GB from {size} bytes"

    return check


@pytest.fixture(scope="module")
def checkpoint():
    return strangers.sound()


def written(path, checkpoint, **changes):
    """The checkpoint with fields of its record changed, as a file."""
    record = json.loads(json.dumps(checkpoint["remoco"]))
    for field, value in changes.items():
        *folders, last = field.split("__")
        part = record
        for name in folders:
            part = part[name]
        part[last] = value
    torch.save(checkpoint | {"remoco": record}, path)
    return path


def test_a_sound_one_is_taken(forks, checkpoint, tmp_path):
    for door in ("checkpoint", "pack"):
        path = written(tmp_path / "a.ckpt", checkpoint)
        assert forks.run("measured", str(tmp_path / "out.json"), door, str(path)) == 0, forks.said
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["error"] is None and found["code"] == 0 and found["built"]


FIELDS: dict = {
    "architecture__lora_rank": [(2048, "misshapen"), (10**9, "lora_rank is 1000"), ("4", "lora_rank"), (True, "lora")],
    "architecture__lora": [("linear", "misshapen"), ("all", "lora is 'all'"), (None, "unknown")],
    "architecture__injection": [
        (["concat"], "missing"), (["os.system"], "not imported|injection"), (5, "injection"), ("concat", "injection"),
        ([["add"]], "injection"), (["add"] * 9, "injection"), (["add", "add"], "injection"),
    ],
    "base__init_args__components": [(192, "misshapen"), (10**12, "components"), ("8", "compo"), (True, "components")],
    "base__init_args__latents": [("vae", "unknown"), ("space_to_depth", "unknown"), (["pca"], "latents")],
    "base__init_args__trained": [(True, "trained")],
    "base__init_args": [({"path": "owner/name"}, "path"), ([], "init_args"), (5, "init_args")],
    "base__class_path": [
        ("os.system", "class_path"), ("antigravity.Base", "not imported"), (5, "class_path"), ("x" * 300, "class_path"),
        ("lightning_modules.bases.SVD", "size|missing|none"), ("lightning_modules.bases.Nope", "class_path"),
    ],
    "architecture__train_base": [(1, "train_base")],
    "architecture__svd": [("owner/name", "svd")],
    "architecture__adapter": [("/etc/passwd", "adapter")],
    "architecture__condition__init_args__region_size": [(10**9, "region"), ("8", "region"), ([8], "region")],
    "base__init_args__size": [("full", "misshapen"), ("small", "misshapen"), ("huge", "size"), (["micro"], "size")],
    "base__init_args__init_seed": [(2**80, "init_seed"), ("0", "init_seed")],
    "base__revision": [("x" * 10_000, "revision")],
    "base__random_init": [("micro", "base is 'random_init'")],
    "sampling__num_frames": [(10**9, "num_frames"), (1000, "pixels in all|sampling"), (2.5, "num_frames")],
    "sampling__height": [(8192, "sampling"), (100, "height")],
    "sampling__steps": [(10**9, "steps")],
    "sampling__sigma_max": [(float("nan"), "sigma_max")],
    "sampling__guidance": [([1], "guidance"), (["a", "b"], "guidance")],
    "sampling__inputs": [
        ({"fps": 1e9}, "fps"), ({"motion_bucket_id": "pan"}, "motion_b"), ({"prompt": "x"}, "inputs"), (5, "inputs"),
    ],
    "whole": [(True, "missing"), ("yes", "whole")],
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_what_a_record_asks_for_is_compared_with_its_tensors(refused, checkpoint, tmp_path, field):
    for value, named in FIELDS[field]:
        changes = {field: value} | ({"sampling__width": 8192} if (field, value) == ("sampling__height", 8192) else {})
        if (field, value) == ("sampling__num_frames", 1000):
            changes |= {"sampling__height": 512, "sampling__width": 512}
        refused("checkpoint", written(tmp_path / "a.ckpt", checkpoint, **changes), named)


@pytest.fixture(scope="module")
def repeated():
    """A record of a base of SVD's size, and one number for each of its tensors."""
    return strangers.large("full", lora="attention", rank=32)


def test_tensors_of_one_number_are_refused_before_anything_is_built(refused, repeated, checkpoint, tmp_path):
    module, state = repeated
    record = json.loads(json.dumps(checkpoint["remoco"]))
    record["architecture"] |= {"lora_rank": 32}
    record["base"]["init_args"] |= {"size": "full", "latents": "vae"}
    torch.save(checkpoint | {"remoco": record, "state_dict": state}, tmp_path / "a.ckpt")
    refused("checkpoint", tmp_path / "a.ckpt", "beyond its storage|not dense")
    small = {name: torch.zeros(1) for name in state}
    torch.save(checkpoint | {"remoco": record, "state_dict": small}, tmp_path / "a.ckpt")
    for door in ("checkpoint", "pack"):
        refused(door, tmp_path / "a.ckpt", "misshapen")
    small = {name: torch.zeros(1).half() for name in [*state, *(f"base.unet.{n}" for n in range(9))]}
    strangers.whole_file(tmp_path / "a.safetensors", record, small)
    for door in ("checkpoint", "pack"):
        refused(door, tmp_path / "a.safetensors", "missing, unknown or misshapen")


def test_random_weights_that_no_file_pays_for_are_not_drawn():
    """All shapes are right, so that the file itself would be some hundred MB; the base it asks for is 9 GB."""
    from lightning_modules.expected import check_drawn

    base = Sprites("full", latents="vae")
    full = {"base.unet.a": torch.empty(10**9, device="meta"), "motion_encoder.a": torch.empty(10**7, device="meta")}
    with pytest.raises(ValueError, match=r"base .size full, .*: 4 GB of random weights beside the file's own 38 MB"):
        check_drawn(full, {"motion_encoder.a": torch.zeros(10**7)}, base)
    check_drawn(full, full, base)


KINDS = {
    "repeated": (lambda x: x[:1].expand_as(x), "not dense|beyond"),
    "every second": (lambda x: torch.stack([x, x], -1)[..., 0], "not dense"),
    "sparse": (lambda x: x.to_sparse(), "plain, dense"),
    "meta": (lambda x: x.to("meta"), "plain, dense"),
    "complex": (lambda x: x.to(torch.complex64), "plain, dense"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "plain, dense"),
    "eight bits": (lambda x: x.to(torch.float8_e4m3fn), "plain, dense"),
    "whole numbers": (lambda x: x.long(), "is int64, expected floats"),
    "NaN": (lambda x: x * float("nan"), "NaN or infinite"),
    "infinite": (lambda x: x.index_fill(0, torch.tensor([0]), float("inf")), "NaN or infinite"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_not_plain_is_refused(refused, checkpoint, tmp_path, kind):
    change, named = KINDS[kind]
    state = dict(checkpoint["state_dict"])
    name = max(state, key=lambda name: state[name].numel())
    state[name] = change(state[name])
    torch.save(checkpoint | {"state_dict": state}, tmp_path / "a.ckpt")
    refused("checkpoint", tmp_path / "a.ckpt", named)
    torch.save({"module": state}, tmp_path / "a.pt")
    if kind not in ("whole numbers", "NaN", "infinite"):  # read, and then found to be none of a released network
        refused("released", tmp_path / "a.pt", named)
        refused("tracker", tmp_path / "a.pt", named)


def test_tensors_that_share_their_values_are_refused(refused, checkpoint, tmp_path):
    state, shared = dict(checkpoint["state_dict"]), torch.zeros(1 << 20)
    torch.save(checkpoint | {"state_dict": state, "more": {n: shared for n in range(4000)}}, tmp_path / "a.ckpt")
    refused("checkpoint", tmp_path / "a.ckpt", "share their values")
    # as DeepSpeed writes them: parts of one long tensor
    torch.save({"a": shared[:5], "b": shared[5:11].view(2, 3)}, tmp_path / "parts.pt")
    assert {name: tuple(x.shape) for name, x in read_saved(tmp_path / "parts.pt").items()} == {
        "a": (5,),
        "b": (2, 3),
    }


@pytest.mark.parametrize("bomb", strangers.PICKLES)
def test_a_pickle_calls_nothing(refused, tmp_path, bomb):
    path = tmp_path / "a.ckpt"
    strangers.pickled(path, strangers.PICKLES[bomb], [("0", b"\0\0\0\0")])
    for door in ("checkpoint", "released", "tracker", "i3d") if bomb == "bytearray" else ("checkpoint",):
        refused(door, path, "a.ckpt")


def test_archives_that_lie_about_their_size(refused, tmp_path):
    strangers.overlapping(tmp_path / "a.ckpt", 2000)
    refused("checkpoint", tmp_path / "a.ckpt", "overlap")
    strangers.legacy(tmp_path / "a.pt", 3 << 30)
    for door in ("released", "tracker", "i3d"):
        refused(door, tmp_path / "a.pt", "beyond the file|beyond its storage|said to hold")


def test_headers_and_metadata_are_bounded(refused, checkpoint, tmp_path):
    path, state = tmp_path / "a.safetensors", {"x": torch.zeros(2).half()}
    about = embedded.metadata(checkpoint["remoco"], state, [], 1)
    for change, named in (
        ({"remoco": "[" * 200_000}, "nested too deeply|no JSON"),
        ({"remoco": "[" + "[]," * 2_000_000 + "[]]"}, "more than"),
        ({"remoco": "5"}, "record"),
        ({"global_step": "9" * 5000}, "global_step"),
        ({"global_step": "-1"}, "global_step"),
    ):
        save_file(state, path, metadata=about | change)
        refused("checkpoint", path, named)
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    for door in ("checkpoint", "adapter", "tracker"):
        refused(door, path, "header")


def test_a_saved_folder(refused, checkpoint, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    save_file(checkpoint["state_dict"], folder / WEIGHTS)
    (folder / RECORD).write_text(json.dumps(checkpoint["remoco"]).replace('"micro"', '"full"'))
    refused("folder", folder, "misshapen")
    (folder / RECORD).write_text("[" * 100_000)
    refused("folder", folder, "nested too deeply|no JSON")
    (folder / RECORD).write_text("[" + "0," * 3_000_000 + "0]")
    refused("folder", folder, "more than")


def test_adapters_and_exports(refused, checkpoint, tmp_path):
    state = {
        name.removeprefix("base.").replace("injections.0.", "injection."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if "pca" not in name
    }
    for name in state:
        if ".lora_A." in name:
            state[name] = torch.zeros(10**9, 0)  # no bytes, and yet a rank
    save_file(state, tmp_path / "adapter.safetensors")
    refused("adapter", tmp_path / "adapter.safetensors", "misshapen|rank")
    torch.save(checkpoint, tmp_path / "a.ckpt")
    refused("export-base", tmp_path / "a.ckpt", "holds a controller")
    changes = {"architecture__injection": None, "base__init_args__size": "full"}
    refused("export-base", written(tmp_path / "a.ckpt", checkpoint, **changes), "missing, unknown or misshapen")


def test_numbers_in_released_names_are_not_counted_up_to(refused, tmp_path):
    names = {"label_emb.0.0.weight": (32, 96), "out.2.weight": (4, 32, 3, 3), "input_blocks.0.0.weight": (32, 8, 3, 3),
             "x.attn2.to_k.weight": (32, 32), "input_blocks.1.0.out_layers.3.weight": (64, 64, 3, 3),
             "input_blocks.1.1.transformer_blocks.0.norm1.weight": (64,)}  # fmt: skip
    for name in ("input_blocks.99999999999.0.weight", "input_blocks.1.1.transformer_blocks.99999999.norm1.weight"):
        torch.save(
            {"module": {key: torch.zeros(shape) for key, shape in [*names.items(), (name, (1,))]}}, tmp_path / "a.pt"
        )
        refused("released", tmp_path / "a.pt", "block's number of at most")
    torch.save({"module": {5: torch.zeros(1)}}, tmp_path / "a.pt")
    refused("released", tmp_path / "a.pt", "no dictionary of tensors")


CONFIGS = [
    ("unet", {"layers_per_block": 10**8}, "layers_per_block is"),
    ("unet", {"layers_per_block": 4000, "transformer_layers_per_block": 4000}, "multiply to"),
    ("unet", {"block_out_channels": [32 * 400, 64 * 400]}, "asks for"),
    ("unet", {"cross_attention_dim": 10**6}, "asks for"),
    ("image_encoder", {"hidden_size": 10**5}, "asks for"),
    ("image_encoder", {"num_hidden_layers": 4000}, "asks for"),
    ("image_encoder", {"image_size": 10**6, "patch_size": 1}, "asks for"),
    ("image_encoder", {"attn_implementation": "owner/kernel"}, "leads to more"),
    ("image_encoder", {"quantization_config": {"quant_method": "gptq"}}, "leads to more"),
    ("vae", {"channels": 10**9}, "components|PatchPCA"),
]


@pytest.mark.parametrize("part, change, named", CONFIGS)
def test_a_base_of_other_sizes_than_its_config(refused, tmp_path, part, change, named):
    folder = strangers.copied_base(tmp_path / "base")
    config = folder / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    refused("base", folder, named)
