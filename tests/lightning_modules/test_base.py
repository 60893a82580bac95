"""A base of one's own: trained without control, written as diffusers' folders, frozen under a controller."""

import json

import pytest
import torch

from conditions import RegionWise
from datamodules import SpritesDataModule
from lightning_modules import embedded
from lightning_modules.bases import SVD
from lightning_modules.checkpoint import read_checkpoint
from lightning_modules.pipeline import MotionControlPipeline
from remoco.common.errors import UserError
from tests.support.commands import remoco
from tests.support.nets import motion_control, random_svd
from tests.support.places import REPO

TINY = REPO / "tests" / "campaign" / "tiny.yaml"


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """`python -m lightning fit` of the tiny configuration in one folder; returns the run's."""
    folder = tmp_path_factory.mktemp("base")

    def run(name, *options):
        from remoco.training import main

        main(
            ["fit", f"--config={TINY}", f"--trainer.logger.init_args.save_dir={folder}", *options]
            + [f"--data.init_args.root={folder / 'data'}", f"--trainer.logger.init_args.name={name}"]
        )
        return folder / name

    return run


@pytest.fixture(scope="module")
def trained(fit):
    """A base after six steps."""
    return fit("base", "--model.class_path=lightning_modules.BaseModule")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "svd"
    assert remoco("export-base", trained / "checkpoints" / "last.ckpt", folder) == 0
    return folder


def test_what_is_exported_says_what_it_was_trained_on(exported):
    assert json.loads((exported / "trained_on.json").read_text())["says"] == "textured shapes over textured backgrounds"
    assert SVD(str(exported)).build().trained_on.psnr == 0


def test_only_the_unet_is_trained_and_no_control_reaches_it(trained):
    found = read_checkpoint(trained / "checkpoints" / "last.ckpt")
    assert {".".join(name.split(".")[:2]) for name in found["state_dict"]} == {"base.unet", "base.pca"}
    assert found["remoco"]["architecture"]["injection"] is None
    fresh = random_svd("micro", 0, "pca").unet.state_dict()
    moved = [name for name in fresh if not torch.equal(fresh[name], found["state_dict"][f"base.unet.{name}"])]
    assert len(moved) > len(fresh) / 2


def test_the_control_is_nothing_to_a_base(trained, fit):
    other = fit("other", "--model.class_path=lightning_modules.BaseModule",
                "--model.init_args.condition.init_args.region_size=16")  # fmt: skip
    one, two = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (trained, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_killed_base_goes_on_with_the_same_bits(trained, fit):
    base = "--model.class_path=lightning_modules.BaseModule"
    fit("resumed", base, "--trainer.max_steps=2")
    run = fit("resumed", base, "--ckpt_path=last")
    one, two = (read_checkpoint(each / "checkpoints" / "last.ckpt") for each in (trained, run))
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    shadows = [each["callbacks"]["EMA"]["shadow"] for each in (one, two)]
    assert all(torch.equal(shadows[0][name], shadows[1][name]) for name in shadows[0])


def test_the_folders_hold_the_averaged_weights_and_the_latents(trained, exported):
    assert json.loads((exported / "vae" / "config.json").read_text()) == {"_class_name": "PatchPCA", "channels": 8}
    found = read_checkpoint(trained / "checkpoints" / "last.ckpt")
    svd = SVD(exported).build()
    averaged = found["callbacks"]["EMA"]["shadow"]
    assert any(not torch.equal(averaged[name], found["state_dict"][name]) for name in averaged)
    for name, tensor in (found["state_dict"] | averaged).items():
        assert torch.equal(svd.get_parameter(name[5:]) if ".pca." not in name else svd.get_buffer(name[5:]), tensor)
    assert svd.channels == 8 and svd.pca.fitted and svd.vae is None
    assert svd.identity["hash"] == SVD(exported).build().identity["hash"]
    assert set(svd.hashes) == {"unet", "image_encoder", "vae"}


def test_a_controller_is_trained_on_it(fit, exported, capsys):
    """Along the path of SVD: frozen, with LoRA, and its checkpoint knows the base again."""
    over = ["--model.init_args.base=lightning_modules.bases.SVD", f"--model.init_args.base.init_args.path={exported}"]
    over += ["--model.init_args.base.init_args.trained=false"]
    over += ["--model.init_args.control.lora=attention", "--model.init_args.control.rank=4"]
    run = fit("lora", *over)
    last = run / "checkpoints" / "last.ckpt"
    names = {name.split(".")[0] for name in read_checkpoint(last)["state_dict"] if ".lora_" not in name}
    assert names - {"base"} == {"motion_encoder", "injections"}
    pipeline = MotionControlPipeline.from_checkpoint(last)
    assert all(".lora_" in n for n in pipeline.module.trained() if n.startswith("base."))
    bare = SVD(exported).build()
    kept = {name.replace(".base_layer", ""): t for name, t in pipeline.module.base.unet.state_dict().items()}
    assert all(torch.equal(kept[name], t) for name, t in bare.unet.state_dict().items())
    image = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    clip = pipeline(image, [[[10, 10], [40, 40]]], num_frames=4).frames
    assert len(clip[0]) == 4

    # another controller starts from it; one file of it would still need the base
    more = {"lora": "attention", "rank": 4, "seed": 7, "start": ("checkpoint", last)}
    other = motion_control(RegionWise(region_size=8), path=str(exported), **more)
    other.configure_model()
    state = read_checkpoint(last)["state_dict"]
    assert state.keys() == other.stored().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in other.stored().items())
    assert remoco("pack", last, exported.parent / "one.safetensors") == 2
    assert "its base is" in capsys.readouterr().err and not (exported.parent / "one.safetensors").exists()

    # another base under it is refused
    changed = exported.parent / "changed"
    bare.pca.scale.mul_(2)
    bare.export(changed)
    with pytest.raises(ValueError, match="other base weights"):
        MotionControlPipeline.from_checkpoint(last, svd=str(changed))


def test_the_base_in_the_package_is_a_trained_one(tmp_path):
    """Small enough to ship, the same by name and by folder; it denoises held-out sprites (untrained: 1)."""
    assert sum(path.stat().st_size for path in embedded.BASE.rglob("*") if path.is_file()) < 8e6
    by_name, by_folder = (SVD(base).build().identity for base in ("embedded-sprites", embedded.BASE))
    assert by_name["hash"] == by_folder["hash"] and by_name["init_args"]["path"] == "embedded-sprites"
    data = SpritesDataModule(
        root=str(tmp_path), scene="plain", clips=1, val_clips=8, frames=8, height=64, width=64, num_workers=0,
        val_batch_size=8,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    module = motion_control(RegionWise(region_size=8), path="embedded-sprites", mean=0.7, std=1.2)
    module.configure_model()
    with torch.no_grad():
        loss = float(module.training_step(next(iter(data.val_dataloader())), 0))
    assert loss < 0.3


def test_mistakes_are_one_line(trained, fit, exported, tmp_path, capsys):
    last = trained / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="a base without a controller"):
        MotionControlPipeline.from_checkpoint(last)
    assert remoco("export-base", last, exported) == 2
    assert "exists already" in capsys.readouterr().err
    assert remoco("export-base", "embedded-sprites", tmp_path / "a") == 2
    assert "holds a controller" in capsys.readouterr().err and not (tmp_path / "a").exists()
    with pytest.raises(SystemExit):
        fit(
            "lora-base",
            "--model.class_path=lightning_modules.BaseModule",
            "--model.init_args.base.init_args.trained=false",
        )
    assert "expected `trained: true`" in capsys.readouterr().err
    for name, content in (("config.json", '{"_class_name": "PatchPCA", "channels": 9}'), ("config.json", "[")):
        SVD(exported).build().export(tmp_path / content[:1] / str(len(content)))
        broken = tmp_path / content[:1] / str(len(content))
        (broken / "vae" / name).write_text(content)
        with pytest.raises(UserError, match="vae"):
            SVD(broken).build()
