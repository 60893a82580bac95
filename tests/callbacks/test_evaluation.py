"""One evaluation: no clip is generated twice under one control, and no number depends on who else reads it."""

import json
from collections import Counter

import pytest
import torch

from callbacks import ControlErrors, Evaluation, Samples, VideoMetrics
from metrics import ControlError, FrechetVideoDistance
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import trainer
from tests.support.obedient import Obedient, plain_sprites

pytestmark = pytest.mark.filterwarnings("ignore:FVD over", "ignore:a Frechet distance")

plain = pytest.fixture(scope="module")(plain_sprites)


class Counted(Obedient):
    """Counts what is asked of it: a clip's name, and the control and motion that it was generated under."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def sample(self, batch, control):
        for row, key in enumerate(batch["key"]):
            told = (
                "off"
                if control is None
                else (control[row].double().sum().item(), float(batch["flow"][row].double().sum()))
            )
            self.counts[key, told] += 1
        return super().sample(batch, control)

    def denoise_once(self, batch, sigma):
        return (batch["first_frame"].float() / 127.5 - 1)[:, None].repeat(1, batch["flow"].shape[1], 1, 1, 1)


def metrics() -> VideoMetrics:
    return VideoMetrics([FrechetVideoDistance(), renamed(ControlError(other_control=True))], clips=5)


def renamed(metric: ControlError) -> ControlError:
    metric.name = "by_itself"
    return metric


def evaluated(folder, data, **parts) -> tuple[Counted, dict]:
    module = Counted()
    run = trainer(folder, [Evaluation(**parts)], max_steps=4, val_check_interval=2)
    run.fit(module, datamodule=data)
    path = folder / "run" / "metrics.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return module, {name: {k: v for k, v in entry.items() if k != "seconds"} for name, entry in found.items()}


def test_each_clip_is_generated_once_under_each_control(tmp_path, plain):
    """Batches of 4 and 2; the metrics read 5 clips, with another clip's control beside, and the samples 2."""
    data = plain()
    module, together = evaluated(
        tmp_path / "all", data, samples=Samples(clips=2), metrics=metrics(), control_errors=ControlErrors()
    )
    # two validations of 6 clips under 4 controls
    assert set(module.counts.values()) == {2} and len(module.counts) == 6 * 4
    assert together["by_itself"]["other_control"] > 4 and together["control_error"]["n"] == 6
    _, alone = evaluated(tmp_path / "metrics", data, metrics=metrics())
    _, errors = evaluated(tmp_path / "errors", data, control_errors=ControlErrors())
    assert together == alone | errors
    evaluated(tmp_path / "samples", data, samples=Samples(clips=2))
    for step in (2, 4):
        for name in ("clip-00.mp4", "clip-01.mp4", "sheet.png"):
            a, b = (tmp_path / run / f"run/samples/step-{step:06d}" / name for run in ("all", "samples"))
            assert a.read_bytes() == b.read_bytes()


def test_fewer_regions_are_a_control_of_their_own(tmp_path, plain):
    """The metrics' clips keep a share of the regions; those of the control errors are the condition's own draw."""

    class Regions(Counted):
        def draw_control(self, batch, condition=None):
            condition = condition or self.condition
            return condition(batch["flow"], batch["visibility"], batch["position"], None, batch["flow_step"])

    module = Regions()
    part = VideoMetrics([FrechetVideoDistance()], clips=4, mask_ratio=0.5)
    run = trainer(tmp_path, [Evaluation(metrics=part, control_errors=ControlErrors(clips=2))])
    run.validate(module, datamodule=plain())
    assert set(module.counts.values()) == {1}
    named = Counter(key for key, _ in module.counts)
    assert [named[f"sprite-{number:06d}"] for number in range(6)] == [5, 5, 1, 1, 0, 0]


def test_what_reads_true_frames_alone_is_measured_once_in_a_fit(tmp_path, plain, monkeypatch):
    calls, own = [], ControlError.update
    monkeypatch.setattr(ControlError, "update", lambda self, *args: [calls.append(self), own(self, *args)][1])
    part = ControlErrors()
    run = trainer(tmp_path, [Evaluation(control_errors=part)], max_steps=4, val_check_interval=2)
    run.fit(Obedient(), datamodule=plain())
    counts = {kind: sum(each is metric for each in calls) for kind, metric in part.metrics.items()}
    assert counts == {"": 4, "_standing_still": 2, "_real": 2, "_swapped": 4, "_off": 4, "_stroke": 4}


def test_samples_of_a_clip_that_is_not_finite_do_not_stop_a_run(tmp_path, plain):
    """Nothing is measured on them; people see it."""

    class Broken(Counted):
        def sample(self, batch, control):
            return torch.full_like(super().sample(batch, control), float("nan"))

    trainer(tmp_path, [Evaluation(Samples(clips=1))]).validate(Broken(), datamodule=plain())
    assert list((tmp_path / "run/samples").glob("*/clip-00.mp4"))


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(UserError, match="Evaluation: has nothing to do, expected samples, metrics or control_errors"):
        Evaluation()
    with pytest.raises(UserError, match="Evaluation.every_n_validations is 0, not positive"):
        Evaluation(Samples(), every_n_validations=0)
