"""`python -m lightning`: its errors, every shipped YAML, and whole runs killed, resumed and in two processes."""

import json
from importlib.metadata import files
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.commands import CONFIGS, command, quick
from tests.support.recorder import read

EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
OVER_SVD = [path for path in EXPERIMENTS if path.stem != "injection_latent"]  # which SVD has no condition for


def test_lightning_still_ships_no_main_of_its_own():
    """When it does, pip overwrites ours in silence: then entry/ has to go."""
    assert not [f for f in files("lightning") or [] if str(f).endswith("lightning/__main__.py")]


def test_fit_test_and_predict(cli, sprites, tmp_path):
    run = tmp_path / "runs" / "one"
    assert cli("fit", *quick(sprites, run))[0] == 0
    assert (run / "config.yaml").is_file()
    last = run / "checkpoints" / "last.ckpt"
    assert last.is_file() and list(run.glob("events.out.tfevents.*"))
    assert cli("test", *quick(sprites, run), "--ckpt_path", last)[0] == 0
    assert cli("predict", *quick(sprites, run), "--ckpt_path", last)[0] == 0


@pytest.mark.parametrize(
    "changes, named",
    [
        (["--model.init_args.condition.init_args.region_size=0"], "region_size"),
        (["--model.init_args.condition.init_args.region_size=65"], "region_size"),
        (["--model.init_args.condition.init_args.min_mask_ratio=1.5"], "min_mask_ratio"),
        (["--data.init_args.height=100"], "height"),
        (["--data.init_args.height=72"], "height"),
        (["--data.init_args.frames=1"], "frames"),
        (["--data.class_path=datamodules.WebVidDataModule", "--data.init_args.shards=no/such-{0..3}.tar"], "no/such"),
        (["--trainer.precision=bf16-true"], "bf16-mixed"),
        (["--optimizer.init_args.lr=-1"], "optimizer.lr is -1"),
        (
            ["--model.init_args.sampling.steps=0"],
            '"sampling.steps": Expected a whole number of 1 to 10000. Got value: 0',
        ),
        (["--model.init_args.sampling.inputs.motion_bucket_id=-1"], "motion_bucket_id is -1"),
        (["--data.init_args.root=/dev/null"], "/dev/null"),
        (["--trainer.logger.init_args.save_dir=/dev/null"], "/dev/null"),
        (["--ckpt_path=no/such.ckpt"], "no/such.ckpt"),
        (["--ckpt_path=best"], "best"),
        (["--model.class_path=lightning_modules.Nope"], "lightning_modules.Nope"),
        (["--config=no-such.yaml"], "no-such.yaml"),
        (["--model.init_args.no_such_option=3"], "no_such_option"),
        (["--model.init_args.noise.spread=null"], '"noise.spread": Expected true or false. Got value: None'),
        (["--data.init_args.frames=null"], '"frames": Expected a whole number. Got value: None'),
        (["--model.init_args.condition.init_args.region_size=null"], "region_size"),
        (
            [
                "--model.init_args.base=lightning_modules.bases.SVD",
                "--model.init_args.base.init_args.path=no/such/folder",
                "--model.init_args.base.init_args.trained=true",
            ],
            "no/such/folder",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_that_names_it(cli, sprites, tmp_path, monkeypatch, changes, named):
    from lightning_modules.bases import Sprites

    monkeypatch.setattr(Sprites, "build", lambda *a, **k: pytest.fail("weights before the check"))
    code, line = cli("fit", *quick(sprites, tmp_path / "runs" / "one"), *changes)
    assert code not in (0, None)
    assert line.startswith("python -m lightning: error: ") and named in line, line


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, Path]:
    """A clip at the sizes that shipped configurations ask for, so that they have shards to point at."""
    from datamodules import SpritesDataModule

    folders = {}
    for name, height, width in (("remoco_svd", 320, 512), ("own_videos", 128, 192)):
        sprites = SpritesDataModule(
            root=str(tmp_path_factory.mktemp(name)), scene="plain",
            clips=1, val_clips=1, frames=16, height=height, width=width,
        )  # fmt: skip
        sprites.prepare_data()
        folders[name] = sprites.folder / "train"
    return folders


@pytest.mark.parametrize(
    "configs",
    [
        [CONFIGS / "quickstart.yaml"],
        [CONFIGS / "quickstart.yaml", CONFIGS / "own_videos.yaml"],
        [CONFIGS / "quickstart_wan.yaml"],
        [CONFIGS / "sprites.yaml"],
        [CONFIGS / "sprites_base.yaml"],
        [CONFIGS / "sprites_wan_base.yaml"],
        [CONFIGS / "photo.yaml"],
        [CONFIGS / "sprites_lora.yaml"],
        [CONFIGS / "sprites_wan_lora.yaml"],
        [CONFIGS / "remoco_svd.yaml"],
        [CONFIGS / "remoco_svd.yaml", CONFIGS / "motionpro_released.yaml"],
    ]
    + [[CONFIGS / "quickstart_wan.yaml", CONFIGS / "experiment" / "injection_latent.yaml"]]
    + [[CONFIGS / "remoco_svd.yaml", overlay] for overlay in OVER_SVD]
    + [pytest.param([CONFIGS / "quickstart.yaml", overlay], marks=pytest.mark.slow) for overlay in OVER_SVD],
    ids=lambda paths: "+".join(path.stem for path in paths),
)
@pytest.mark.filterwarnings("ignore:LightningCLI's args")
def test_every_shipped_yaml_builds(configs, shards):
    """Parsed, instantiated, and its networks built on the meta device at their real size."""
    from remoco.training import Unstarted

    args = ["fit"] + [f"--config={path}" for path in configs]
    if "remoco_svd" in configs[0].stem:
        # the weights are the user's; their shapes are the full size
        args += ["--model.init_args.base=lightning_modules.bases.Sprites", "--model.init_args.base.init_args.size=full"]
        args += ["--model.init_args.base.init_args.latents=vae", "--model.init_args.start=null"]
    if configs[0].stem == "sprites_lora":  # its base's weights are not for the meta device
        args += ["--model.init_args.base=lightning_modules.bases.Sprites"]
    if configs[0].stem == "sprites_wan_lora":  # its base is the user's
        args += ["--model.init_args.base=lightning_modules.bases.RandomWan"]
        args += ["--model.init_args.base.init_args.size=micro_i2v"]
    for name, folder in shards.items():
        if name in {path.stem for path in configs}:
            args += [f"--data.init_args.shards={folder}"]
            args += [f"--data.init_args.val_shards={folder}"]
    built = Unstarted(args)
    with torch.device("meta"):
        built.model.configure_model()
    wanted = yaml.safe_load(configs[-1].read_text()).get("model", {}).get("init_args", {})
    record = built.model.architecture()
    if "injection" in wanted:
        assert record["injection"] == wanted["injection"]
    condition = wanted.get("condition", {})
    if "class_path" in condition:
        assert record["condition"]["class_path"] == condition["class_path"]
    for name, value in condition.get("init_args", {}).items():
        assert record["condition"]["init_args"][name] == value
    if "remoco_svd" in configs[0].stem:
        assert sum(p.numel() for p in built.model.motion_encoder.parameters()) == 69_195_440


def test_no_yaml_is_left_out():
    known = {"base", "quickstart", "own_videos", "remoco_svd", "motionpro_released", "photo"}
    known |= {"quickstart_wan", "sprites", "sprites_base", "sprites_lora", "sprites_wan_base", "sprites_wan_lora"}
    known |= {"wan_i2v", "wan_ti2v", "wan_a14b_high", "wan_a14b_low", "cogvideox_i2v"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == known
    evaluations = {CONFIGS / "eval" / f"{name}.yaml" for name in ("bench", "metrics", "quickstart_bench", "webvid")}
    sweeps = set((CONFIGS / "sweep").rglob("*.yaml"))  # tests/commands/test_sweep.py has them
    overlays = {path for path in CONFIGS.rglob("*.yaml") if path.parent != CONFIGS} - sweeps
    assert overlays == set(EXPERIMENTS) | evaluations


def test_the_sweep_has_every_point():
    names = {path.stem for path in EXPERIMENTS}
    assert {f"region_size_{k}" for k in (1, 2, 4, 8, 16)} <= names
    assert {f"min_mask_ratio_{r}" for r in (0.8, 0.9, 0.95, 0.99)} <= names
    assert {f"injection_{i}" for i in ("modulation", "concat", "add")} <= names
    assert {"condition_region_wise", "condition_gaussian", "condition_no_mask"} <= names


def recorder(path: Path, kill_at: int = 0) -> list[str]:
    return [
        "--trainer.callbacks+=tests.support.recorder.Recorder",
        f"--trainer.callbacks.path={path}",
        f"--trainer.callbacks.kill_at={kill_at}",
    ]


def assert_same(a, b) -> None:
    """The same nested values, tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


EXACT = {
    "trainer.max_steps": 8,
    "trainer.val_check_interval": 4,
    "trainer.callbacks": json.dumps(
        [
            {"class_path": "callbacks.RunFolder"},
            {"class_path": "callbacks.EMA"},
            {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 3}},
        ]
    ),
}


@pytest.fixture(scope="module")
def whole(lightning, sprites, tmp_path_factory):
    """A run that nobody kills, and what it recorded."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = lightning("fit", *quick(sprites, folder / "run", **EXACT), *recorder(folder / "whole.jsonl"))
    assert code == 0, said
    return folder / "run", read(folder / "whole.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [4, 5])
def test_killed_and_resumed_equals_never_killed(lightning, whole, sprites, tmp_path, kill_at):
    whole, expected = whole
    killed = tmp_path / "runs" / "killed"
    words = recorder(tmp_path / "killed.jsonl", kill_at=kill_at)
    code, said = lightning("fit", *quick(sprites, killed, **EXACT), *words)
    assert code == -9, said
    other_workers = quick(sprites, killed, **EXACT, **{"data.init_args.num_workers": 2})
    code, said = lightning("fit", *other_workers, *recorder(tmp_path / "resumed.jsonl"), "--ckpt_path=last")
    assert code == 0, said
    assert read(tmp_path / "killed.jsonl") == expected[:kill_at]
    assert read(tmp_path / "resumed.jsonl") == expected[3:]  # the last checkpoint before the kill was at step 3
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, killed))
    assert_same(a["state_dict"], b["state_dict"])
    assert_same(a["optimizer_states"], b["optimizer_states"])
    assert_same(a["callbacks"]["EMA"], b["callbacks"]["EMA"])


@pytest.mark.slow
def test_two_processes_equal_one(lightning, sprites, tmp_path):
    """2 gloo ranks x 2 clips, 1 process x 4, and 2 x 2 by accumulation: the same samples, losses to 1e-6."""
    single, double, summed = (tmp_path / "runs" / name for name in ("single", "double", "summed"))
    # In float64 and at the paper's learning rate, because AdamW's first steps are lr x sign(gradient): where a gradient
    # is near zero, the rounding of a sum in another order moves the weight by 2 lr. float32 agrees to 1.5e-7 at the
    # first step only.
    exact = {"trainer.precision": "64-true", "optimizer.init_args.lr": 1e-5}
    big = EXACT | exact | {"trainer.max_steps": 4, "data.init_args.batch_size": 4}
    assert lightning("fit", *quick(sprites, single, **big), *recorder(tmp_path / "single.jsonl"))[0] == 0
    small = big | {"data.init_args.batch_size": 2}
    # three validation clips one by one: the ranks have unequal numbers of batches
    uneven = {"trainer.limit_val_batches": 1.0, "data.init_args.val_batch_size": 1}
    ddp = small | uneven | {"trainer.devices": 2, "trainer.strategy": "ddp"}
    command("fit", *quick(sprites, double, **ddp), *recorder(tmp_path / "double-{rank}.jsonl"))
    accumulated = small | {"trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 8}
    assert lightning("fit", *quick(sprites, summed, **accumulated), *recorder(tmp_path / "summed.jsonl"))[0] == 0
    one = read(tmp_path / "single.jsonl")
    ranks = [read(tmp_path / f"double-{rank}.jsonl") for rank in (0, 1)]
    micro = read(tmp_path / "summed.jsonl")
    pairs = {"ddp": list(zip(*ranks)), "accumulation": list(zip(micro[::2], micro[1::2]))}
    for name, halves in pairs.items():
        assert len(halves) == len(one) == 4, name
        for (a, b), whole in zip(halves, one):
            assert a["keys"] + b["keys"] == whole["keys"], name
            assert a["position"] + b["position"] == whole["position"], name
            mean = (float.fromhex(a["loss"]) + float.fromhex(b["loss"])) / 2
            assert mean == pytest.approx(float.fromhex(whole["loss"]), abs=1e-6), name


@pytest.mark.slow
def test_from_any_folder(sprites, tmp_path):
    command("fit", *quick(sprites, tmp_path / "runs" / "here", **{"trainer.limit_val_batches": 0}), cwd=tmp_path)
    assert (tmp_path / "runs" / "here" / "checkpoints" / "last.ckpt").is_file()
