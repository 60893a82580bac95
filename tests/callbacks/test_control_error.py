"""Control errors in a run: each number is what its name says, printed, logged and written."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ControlErrors, Evaluation
from callbacks.control_error import write_metrics
from conditions import flow_to_pixels, motion_bucket
from lightning_modules.conditioning import to_uint8
from metrics import ControlError, farthest_objects, moving_object
from remoco.common.errors import UserError
from tests.support.callbacks_stand_in import Data, Module, trainer
from tests.support.obedient import Obedient, plain_sprites

plain = pytest.fixture(scope="module")(plain_sprites)


def test_the_numbers_are_what_their_names_say(tmp_path, plain, capsys):
    data, module = plain(), Obedient()
    run = trainer(tmp_path, [Evaluation(control_errors=ControlErrors())], max_steps=4, val_check_interval=4)
    run.fit(module, datamodule=data)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    names = ["control_error" + end for end in ("", "_standing_still", "_real", "_swapped", "_off", "_stroke")]
    assert sorted(written) == sorted(names)
    assert all(set(result) == {"value", "protocol", "n", "seconds"} and result["n"] == 6 for result in written.values())
    errors = {name: written[name]["value"] for name in names}
    # within rounding of the true path, and as far as the path is long without it
    assert errors["control_error"] < 1.0 and errors["control_error_real"] < 1.0
    assert errors["control_error_off"] == errors["control_error_standing_still"] > 4
    assert errors["control_error_swapped"] > 4
    real = ControlError()
    for batch in data.val_dataloader():
        flow = (batch["flow"].float() - 32768) * batch["flow_step"].view(-1, 1, 1, 1, 1)
        real.update(to_uint8(batch["video"]), batch["first_frame"], *moving_object(flow))
    assert errors["control_error_real"] == pytest.approx(real.compute().item(), abs=1e-9)
    said = capsys.readouterr().out
    assert "Control error in px, 6 clips, step 4" in said and "another clip's control" in said
    logged = EventAccumulator(str(tmp_path / "run")).Reload()
    for name in names:
        assert logged.Scalars(f"val/{name}")[-1].value == pytest.approx(errors[name], rel=1e-6)


def test_another_clips_control_is_all_of_another_clips_motion(tmp_path, plain):
    """Flow, visibility, masks and bucket: with its own masks a clip would still be told where to move."""
    seen = {}
    for size in (4, 2):  # the clip half the set away, whatever the batches
        data, module = plain(val_batch_size=size), Obedient()
        trainer(tmp_path, [Evaluation(control_errors=ControlErrors())], max_steps=1).validate(module, datamodule=data)
        dataset = data.val_dataloader().dataset
        for own, swapped in zip(module.given[::3], module.given[1::3]):  # the third is of one stroke
            assert own["key"] == swapped["key"]
            others = [dataset[(position + 3) % 6] for position in own["position"].tolist()]
            for name in ("flow", "visibility", "moving", "motion_bucket"):
                expected = torch.stack([torch.as_tensor(other[name]) for other in others])
                assert torch.equal(swapped[name], expected) and not torch.equal(swapped[name], own[name]), name
            for name in ("first_frame", "video", "position"):
                assert torch.equal(swapped[name], own[name]), name
        seen[size] = json.loads((tmp_path / "run" / "metrics.json").read_text())["control_error_swapped"]["value"]
    assert seen[4] == pytest.approx(seen[2], abs=1e-9)


def test_one_stroke_is_the_objects_path_with_the_object_as_brush(tmp_path, plain):
    """What the condition draws of it: the path in one region at the object's middle, the mask on the object."""
    data, module = plain(val_batch_size=6), Obedient()
    trainer(tmp_path, [Evaluation(control_errors=ControlErrors())], max_steps=1).validate(module, datamodule=data)
    own, swapped, stroke = module.controls
    batch, other = module.given[:2]
    assert torch.equal(own, module.draw_control(batch)) and torch.equal(swapped, module.draw_control(other))
    flow = flow_to_pixels(batch["flow"], batch["flow_step"])
    for clip, mask, path in zip(stroke, *moving_object(flow), strict=True):
        assert torch.equal(clip[:, 2].bool(), mask.expand(4, -1, -1))
        drawn = clip[:, :2].abs().sum((0, 1)).bool()
        middle = mask.nonzero().double().mean(0)
        assert 0 < drawn.sum() <= 64 and (drawn.nonzero() - middle).abs().max() <= 8
        moved = clip[:, :2, drawn].mean(2)
        ends = torch.minimum((middle.flip(0) + path).clamp(min=0), torch.tensor(63.0)) - middle.flip(0)
        assert torch.allclose(moved.double(), ends, atol=1e-4)


def test_one_stroke_tells_nothing_of_what_else_moves_in_the_true_clip(tmp_path, plain):
    """Its motion bucket is of the object on the stroke alone, as a person draws it: a camera's motion is not in it."""
    for scene in ("plain", "varied"):
        data, module = plain(scene=scene, val_clips=12, val_batch_size=12), Obedient()
        trainer(tmp_path, [Evaluation(control_errors=ControlErrors())], max_steps=1).validate(module, datamodule=data)
        batch, told = module.given[0], module.given[2]
        assert not {"moving", "motion_bucket", "flow_step"} & set(told)
        flow = flow_to_pixels(batch["flow"], batch["flow_step"])
        masks, tracks = moving_object(flow) if scene == "plain" else farthest_objects(flow, batch["visibility"])[:2]
        there = masks.flatten(1).any(1)
        assert told["key"] == [key for key, followed in zip(batch["key"], there) if followed]
        flow, masks, tracks, true_bucket = flow[there], masks[there], tracks[there], batch["motion_bucket"][there]
        inside = torch.tensor([_stays_inside(mask, path) for mask, path in zip(masks, tracks)])
        bucket = motion_bucket(told["flow"])
        expected = tracks.norm(dim=-1).mean(1) * masks.double().mean((1, 2))
        assert inside.sum() > 3 and torch.allclose(bucket[inside].double(), expected[inside], rtol=1e-5)
        if scene == "plain":
            assert torch.allclose(bucket[inside], true_bucket[inside], rtol=0.05)
        else:
            camera = (flow.norm(dim=2) > 0.5).double().mean((1, 2, 3)) > 0.6  # of pixels that move
            assert camera.sum() > 2 and (bucket[camera] < 0.5 * true_bucket[camera]).all()


def _stays_inside(mask, path):
    places = mask.nonzero().double().mean(0).flip(0) + path
    return bool(((places >= 0) & (places <= 63)).all())


def test_textured_scenes_follow_one_object_of_several(tmp_path, plain):
    """The scorer knows the true clips; without motion the error is how far the objects go."""
    data, module = plain(scene="textured", val_clips=12), Obedient()
    trainer(tmp_path, [Evaluation(control_errors=ControlErrors())], max_steps=1).validate(module, datamodule=data)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 10 <= found["control_error"]["n"] <= 12 and "goes farthest" in found["control_error"]["protocol"]
    assert found["control_error_real"]["value"] < 0.1 * found["control_error_standing_still"]["value"]
    assert "control_error_stroke" in found and "control_error_swapped" in found


def test_clips_are_capped_and_test_measures_too(tmp_path, plain):
    module = Obedient()
    run = trainer(tmp_path, [Evaluation(control_errors=ControlErrors(clips=3))])
    module.test_step = module.validation_step
    run.test(module, datamodule=plain(), verbose=False)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["control_error"]["n"] == 3
    assert set(module.sampled) == {f"sprite-{number:06d}" for number in range(3)}


def test_a_clip_with_nan_is_named(tmp_path, plain):
    class Broken(Obedient):
        def sample(self, batch, control):
            return torch.full_like(super().sample(batch, control), float("nan"))

    with pytest.raises(UserError, match="sprite-000000: the generated video holds NaN"):
        trainer(tmp_path, [Evaluation(control_errors=ControlErrors(clips=2))]).validate(Broken(), datamodule=plain())


def test_other_data_are_left_alone(tmp_path):
    with pytest.warns(UserWarning, match="control_errors measures nothing"):
        trainer(tmp_path, [Evaluation(control_errors=ControlErrors())]).fit(Module(), datamodule=Data())
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_metrics_of_others_stay_in_the_file(tmp_path):
    file = tmp_path / "metrics.json"
    write_metrics(file, {"fvd": {"value": 1.0}})
    write_metrics(file, {"control_error": {"value": 2.0}})
    assert json.loads(file.read_text()) == {"fvd": {"value": 1.0}, "control_error": {"value": 2.0}}
    file.write_text("[")
    with pytest.raises(UserError, match="metrics.json: expected a JSON object"):
        write_metrics(file, {})


def test_one_clip_is_too_few():
    with pytest.raises(UserError, match="Evaluation.control_errors.clips must be at least 2, got 1"):
        ControlErrors(clips=1)


def test_a_trial_step_writes_nothing_and_a_run_without_loggers_in_its_folder(tmp_path, plain, monkeypatch):
    """`fast_dev_run` has no folder; with `logger: false` the run's own is `default_root_dir`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    evaluation = Evaluation(control_errors=ControlErrors())
    trainer(tmp_path, [evaluation], fast_dev_run=True).validate(Obedient(), datamodule=plain())
    own = {"logger": False, "default_root_dir": str(tmp_path / "own")}
    trainer(tmp_path, [evaluation], **own).validate(Obedient(), datamodule=plain())
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("metrics.json")] == ["own/metrics.json"]
