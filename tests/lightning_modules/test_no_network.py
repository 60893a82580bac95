"""A file cannot make us reach the network: what it names is not fetched, nor found in the hub's cache."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lightning_modules.pipeline import MotionControlPipeline
from tests.support import strangers
from tests.support.forks import Forks


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub on loopback that has nothing, and the paths it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cache = tmp_path_factory.mktemp("cache")
    # the base lies in the cache, complete
    repository = cache / "hub/models--owner--name"
    strangers.copied_base(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("HF_HOME", str(cache))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy"):
            patch.delenv(name, raising=False)
        with Forks("tests.support.strangers") as forks:
            yield forks, asked
    server.shutdown()


@pytest.fixture
def outcome(hub, tmp_path):
    forks, asked = hub

    def run(door, path):
        asked.clear()
        assert forks.run("measured", str(tmp_path / "out.json"), door, str(path)) == 0, forks.said
        found = json.loads((tmp_path / "out.json").read_text())
        return found["error"] or forks.said.strip(), found["code"], list(asked)

    return run


@pytest.mark.parametrize("base", ["owner/name", "https://example.org/base", "//example.org/share", "/net/nowhere/base"])
def test_a_base_that_a_record_names_is_not_fetched(outcome, tmp_path, base):
    path = tmp_path / "a.ckpt"
    checkpoint = strangers.sound()
    checkpoint["remoco"]["base"] = {
        "class_path": "lightning_modules.bases.SVD", "init_args": {"path": base, "revision": None}, "hash": "0" * 64,
    }  # fmt: skip
    torch.save(checkpoint, path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "image.png")
    for door in ("checkpoint", "generate", "pack"):
        said, code, asked = outcome(door, path)
        assert code == 2 and asked == [] and "\n" not in said, said
        assert base in said
        assert door == "pack" or ("--svd" in said and "svd=" in said), said


def test_the_same_base_is_looked_for_where_the_user_names_it(outcome, tmp_path):
    checkpoint = strangers.sound()
    checkpoint["remoco"]["base"] = {
        "class_path": "lightning_modules.bases.SVD", "init_args": {"path": "owner/name"}, "hash": "0" * 64,
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "a.ckpt")
    _, code, asked = outcome("named", tmp_path / "a.ckpt")
    assert code == 2 and any("owner/name" in path for path in asked)


def test_local_folders_ask_nobody(outcome, tmp_path):
    folder = strangers.copied_base(tmp_path / "base")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["owner/name", "X"], "_name_or_path": "owner/name"}))
    (folder / "config.yaml").write_text("model: {init_args: {svd: owner/name}}")
    for part in ("unet", "image_encoder"):
        config = folder / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "owner/name"}))
    assert outcome("base", folder)[1:] == (0, [])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=16))
    clip.save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "clip")
    assert outcome("clip", tmp_path / "clip")[1:] == (0, [])


def test_a_saved_folder_asks_nobody_for_what_its_files_name(outcome, tmp_path):
    folder = tmp_path / "saved"
    MotionControlPipeline.from_pretrained("embedded-sprites").save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(
        json.dumps(json.loads(index.read_text()) | {"unet": ["owner/name", "X"], "_name_or_path": "owner/name"})
    )
    assert outcome("folder", folder)[1:] == (0, [])
    record = json.loads((folder / "motion_control.json").read_text())
    record["base"]["init_args"]["path"] = "owner/name"
    (folder / "motion_control.json").write_text(json.dumps(record))
    said, code, asked = outcome("folder", folder)
    assert code == 2 and asked == [] and "owner/name" in said and "\n" not in said, said


def test_settings_beside_lora_ask_nobody(outcome, tmp_path):
    """peft fetches the model that an adapter's config names."""
    layer = "base_model.model.down_blocks.0.resnets.0.spatial_res_block.conv1"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 32, 3, 3), f"{layer}.lora_B.weight": torch.ones(32, 2, 1, 1)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 2, "base_model_name_or_path": "owner/name", "revision": "main"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert outcome("lora", tmp_path)[1:] == (0, [])
    said, code, asked = outcome("lora", "owner/name")  # which the user names
    assert code == 2 and any("owner/name" in path for path in asked) and "\n" not in said, said


@pytest.mark.parametrize("door, part", [("base", "image_encoder"), ("base", "unet"), ("clip", "image_encoder")])
def test_what_lies_beside_weights_is_not_followed(outcome, tmp_path, door, part):
    """transformers loads the model that an adapter's config names, from the hub."""
    folder = strangers.copied_base(tmp_path / "base")
    (folder / part / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/name"}))
    said, code, asked = outcome(door, folder if door == "base" else folder / part)
    assert code == 2 and asked == [] and "adapter_config.json" in said and "\n" not in said, said
