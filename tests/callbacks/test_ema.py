"""The average of the trained parameters: its values, where it is used, and its bits over a resume."""

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import EMA, AtomicCheckpointIO, LastCheckpoint, resolve_checkpoint
from remoco.common.errors import UserError
from tests.support.arithmetic import assert_rounded
from tests.support.callbacks_stand_in import Data, Module, trainer


class Record(Callback):
    """The trained weights after every optimizer step, and what a validation, a test and a checkpoint see."""

    def __init__(self):
        self.steps, self.validated, self.after = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.steps.append((trainer.global_step, pl_module.trained.weight.detach().clone()))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.steps.append((trainer.global_step, pl_module.trained.weight.detach().clone()))

    def on_validation_epoch_end(self, trainer, pl_module):
        self.validated.append(pl_module.trained.weight.detach().clone())

    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self, trainer, pl_module):
        self.after.append(pl_module.trained.weight.detach().clone())


def fit(folder, max_steps, decay=0.8, extra=(), ckpt_path=None, **kwargs):
    torch.manual_seed(0)
    ema, record = EMA(decay), Record()
    run = trainer(
        folder, [ema, record, *extra, LastCheckpoint(3)], max_steps=max_steps, plugins=[AtomicCheckpointIO()], **kwargs
    )
    module = Module()
    run.fit(module, datamodule=Data(), ckpt_path=resolve_checkpoint(run, ckpt_path))
    return ema, record, module


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_update_per_optimizer_step(tmp_path, accumulate):
    ema, record, _ = fit(tmp_path, 5, accumulate_grad_batches=accumulate, val_check_interval=4 * accumulate)
    expected, last = record.steps[0][1].double(), 0
    for step, weight in record.steps:
        if step != last:
            expected = torch.lerp(expected, weight.double(), 1 - 0.8)
            last = step
    assert last == 5
    assert_rounded(ema.shadow["trained.weight"], expected)
    assert set(ema.shadow) == {"trained.weight", "trained.bias"}  # nothing frozen
    assert all(value.dtype == torch.float32 for value in ema.shadow.values())


def test_evaluations_see_the_average_and_training_its_own_weights(tmp_path):
    ema, record, module = fit(tmp_path, 4)
    trained = record.steps[-1][1]
    assert torch.equal(record.validated[-1], ema.shadow["trained.weight"])
    assert not torch.equal(record.validated[-1], trained)
    assert torch.equal(record.after[-1], trained) and torch.equal(module.trained.weight, trained)


def test_a_checkpoint_holds_the_trained_weights_and_the_average_and_test_uses_it(tmp_path):
    ema, record, module = fit(tmp_path, 4)
    path = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert torch.equal(saved["state_dict"]["trained.weight"], module.trained.weight)
    assert torch.equal(saved["callbacks"]["EMA"]["shadow"]["trained.weight"], ema.shadow["trained.weight"])

    class Tested(Module):
        def test_step(self, batch, batch_idx):
            pass

    other, fresh = Record(), Tested()
    trainer(tmp_path, [EMA(0.8), other]).test(fresh, Data().val_dataloader(), ckpt_path=path, verbose=False)
    assert torch.equal(other.validated[-1], ema.shadow["trained.weight"])
    assert torch.equal(fresh.trained.weight, module.trained.weight)


def test_bits_over_a_resume(tmp_path):
    straight, _, one = fit(tmp_path / "straight", 6)
    fit(tmp_path / "resumed", 3)
    resumed, _, two = fit(tmp_path / "resumed", 6, ckpt_path="last")
    for name, value in straight.shadow.items():
        assert torch.equal(value, resumed.shadow[name])
    assert torch.equal(one.trained.weight, two.trained.weight)


class Break(Callback):
    def on_validation_batch_end(self, *args, **kwargs):
        raise KeyError("stop")


def test_an_exception_in_a_validation_gives_the_weights_back(tmp_path):
    torch.manual_seed(0)
    ema, record, module = EMA(0.8), Record(), Module()
    with pytest.raises(KeyError):
        trainer(tmp_path, [ema, record, Break()]).fit(module, datamodule=Data())
    assert not ema.swapped
    assert torch.equal(module.trained.weight, record.steps[-1][1])
    assert not torch.equal(module.trained.weight, ema.shadow["trained.weight"])


class Save(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint("never.ckpt")


def test_the_average_is_never_saved_as_the_weights(tmp_path):
    with pytest.raises(UserError, match="averaged weights"):
        trainer(tmp_path, [EMA(0.8), Save()]).fit(Module(), datamodule=Data())


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda shadow: shadow | {"other": torch.zeros(1)}, r"different in \['other'\]"),
        (lambda shadow: shadow | {"trained.weight": torch.tensor(1.0)}, r"trained.weight is 'of shape \(\)', expected"),
        (
            lambda shadow: shadow | {"trained.weight": shadow["trained.weight"].double()},
            "float64, or not finite', expected finite",
        ),
        (lambda shadow: shadow | {"trained.weight": shadow["trained.weight"] / 0}, "expected finite float32"),
        (lambda shadow: shadow | {"trained.weight": 1.0}, "expected a `shadow` of tensors"),
        (lambda shadow: None, "expected a `shadow` of tensors"),
    ],
)
def test_an_average_that_is_not_of_what_is_trained_is_one_line(tmp_path, change, told):
    fit(tmp_path, 3)
    path = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["callbacks"]["EMA"]["shadow"] = change(saved["callbacks"]["EMA"]["shadow"])
    torch.save(saved, path)
    with pytest.raises(UserError, match=told) as error:
        fit(tmp_path, 6, ckpt_path="last")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_outside_its_range(decay):
    with pytest.raises(UserError, match="decay"):
        EMA(decay)


def test_validating_without_a_checkpoint_uses_the_weights(tmp_path):
    record, module = Record(), Module()
    trainer(tmp_path, [EMA(), record]).validate(module, datamodule=Data(), verbose=False)
    assert torch.equal(record.validated[-1], module.trained.weight)
