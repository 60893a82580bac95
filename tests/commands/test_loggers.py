"""TensorBoard, CSV, Weights & Biases and MLflow hold the same scalars, and all but CSV the same samples."""

import csv
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.commands import BASE, command
from tests.support.places import REPO

pytestmark = pytest.mark.slow
PLACE = "lightning.pytorch.loggers."
FOUR = [
    {"class_path": f"{PLACE}TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "base", "version": ""}},
    {"class_path": f"{PLACE}CSVLogger", "init_args": {"save_dir": "runs", "name": "base", "version": ""}},
    {"class_path": f"{PLACE}WandbLogger", "init_args": {"save_dir": "runs", "name": "base", "offline": True}},
    {"class_path": f"{PLACE}MLFlowLogger", "init_args": {"run_name": "base", "tracking_uri": "sqlite:///flow.db"}},
]
CLIPS = ("clip-00", "clip-01", "sheet")
Scalars = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a run with all four has been, resumed after four of its six steps under another rate."""
    for library in ("wandb", "mlflow"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("loggers")
    config = json.loads(json.dumps(BASE))
    config["trainer"]["logger"] = FOUR
    config["trainer"]["callbacks"][1]["init_args"] = {"samples": {"clips": 2}, "metrics": {"clips": 4}}
    config["trainer"]["callbacks"].append({"class_path": "callbacks.Throughput"})
    (folder / "base.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "--config", folder / "base.yaml"]
    for more in ([], ["--trainer.max_steps", 6, "--ckpt_path", "last", "--model.init_args.learning_rate", 0.01]):
        # a process that ends as all do: W&B writes the rest then
        command(*words, *more, "--trainer.logger", json.dumps(FOUR), cwd=folder, PYTHONPATH=str(REPO))
    return folder


def put(scalars: Scalars, tag: str, step: int, value: float) -> None:
    if math.isfinite(value):
        scalars.setdefault(tag, {})[step] = float(np.float32(value))


def of_tensorboard(folder: Path) -> tuple[Scalars, dict[str, set[int]]]:
    events = EventAccumulator(str(folder / "runs/base"), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars: Scalars = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            put(scalars, tag, event.step, event.value)
    images = {tag: {event.step for event in events.Images(tag)} for tag in events.Tags()["images"]}
    return scalars, images


def of_csv(folder: Path) -> Scalars:
    scalars: Scalars = {}
    with open(folder / "runs/base/metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for tag, value in row.items():
                if value and tag != "step":
                    put(scalars, tag, int(row["step"]), float(value))
    return scalars


def records(log: bytes) -> Iterator[bytes]:
    """What an offline run wrote: LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes."""
    place, parts = 7, []
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        _, length, kind = struct.unpack_from("<IHB", log, place)
        if left < 7 or kind == 0:  # the rest of a block is empty
            place += left
            continue
        parts.append(log[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            yield b"".join(parts)
            parts = []


def of_wandb(folder: Path) -> tuple[Scalars, dict[str, dict[int, bytes]]]:
    from wandb.proto.wandb_internal_pb2 import Record

    scalars: Scalars = {}
    media: dict[str, dict[int, bytes]] = {}
    for path in sorted(folder.glob("runs/wandb/offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = Record.FromString(data)
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            step = items.pop("trainer/global_step", None)
            for tag, value in items.items():
                if tag.startswith("samples/"):
                    tag, _, field = tag.rpartition("/")
                    if field == "path":
                        media.setdefault(tag, {})[step] = (path.parent / "files" / value).read_bytes()
                elif not tag.startswith("_"):
                    put(scalars, tag, step, value)
    return scalars, media


def of_mlflow(folder: Path) -> tuple[Scalars, dict[str, dict[int, bytes]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/flow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    scalars: Scalars = {}
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            put(scalars, tag, metric.step, metric.value)
    media: dict[str, dict[int, bytes]] = {}
    for step in client.list_artifacts(run.info.run_id, "samples"):
        for file in client.list_artifacts(run.info.run_id, step.path):
            data = Path(run.info.artifact_uri.removeprefix("file://"), file.path).read_bytes()
            media.setdefault(f"samples/{Path(file.path).stem}", {})[int(step.path.rpartition("-")[2])] = data
    return scalars, media


def test_the_same_scalars(folder):
    """Over a resume too, and each under the number of steps done."""
    expected, _ = of_tensorboard(folder)
    assert set(expected["train/loss"]) == set(range(6)) and set(expected["val/loss"]) == {2, 4, 6}
    assert {"usage/clips_per_s", "val/fvd_random_features"} <= expected.keys() and "epoch" not in expected
    for found in (of_csv(folder), of_wandb(folder)[0], of_mlflow(folder)[0]):
        assert found == expected


def test_the_same_samples(folder):
    """As many at the same steps; videos and sheets are the run folder's files."""
    _, images = of_tensorboard(folder)
    assert images == {f"samples/{clip}": {2, 4, 6} for clip in CLIPS}
    files = {}
    for clip in CLIPS:
        suffix = "png" if clip == "sheet" else "mp4"
        paths = {step: folder / f"runs/base/samples/step-{step:06d}/{clip}.{suffix}" for step in (2, 4, 6)}
        files[f"samples/{clip}"] = {step: path.read_bytes() for step, path in paths.items()}
    assert of_mlflow(folder)[1] == files
    media = of_wandb(folder)[1]
    assert {tag: set(at) for tag, at in media.items()} == images
    for clip in CLIPS[:2]:
        assert media[f"samples/{clip}"] == files[f"samples/{clip}"]


def test_the_first_chart_is_a_loss(folder):
    """Dashboards sort by name."""
    for scalars in (of_tensorboard(folder)[0], of_wandb(folder)[0], of_mlflow(folder)[0]):
        assert min(scalars) == "train/loss"


def test_mlflow_goes_on_in_its_run_and_notes_what_the_resumed_part_has_otherwise(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/flow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert run.info.run_name == "base" and run.info.status == "FINISHED"
    assert run.data.params["model.learning_rate"] == "0.05" and run.data.tags["model.learning_rate"] == "0.01"
    assert "random 3D convolutions" in run.data.tags["val/fvd_random_features_protocol"]
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["base", "wandb"]
