"""Points that are drawn: at random, or by Optuna's tree-structured Parzen estimator.

Seeded, and drawn in batches: with the same results the same points come again, so a sweep that was killed draws what it
had drawn, and its folder of trials is all that it has to remember.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remoco.common.errors import UserError
from remoco.sweep.plan import Plan, as_range, named, text

BATCH = 4  # points that TPE draws before it sees their results


def load_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("search: random and tpe need Optuna: pip install -e '.[sweep]' -c constraints.txt") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search(plan: Plan, evaluate: Callable[[list[dict[str, str]]], list[float | None]]) -> None:
    """Draw `plan.trials` points and have them evaluated.

    Args:
        plan: with `search` random or tpe.
        evaluate: runs the trials of some points; the value of each, to be small, None where no trial finished.
    """
    optuna = load_optuna()
    sampler = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}[plan.search](seed=0)
    study = optuna.create_study(sampler=sampler)
    space = {key: _distribution(optuna, values) for key, values in plan.values.items()}
    size = plan.trials if plan.search == "random" else BATCH
    for begin in range(0, plan.trials, size):
        asked = [study.ask(space) for _ in range(min(size, plan.trials - begin))]
        values = evaluate([{key: _text(trial.params[key]) for key in space} for trial in asked])
        for trial, value in zip(asked, values, strict=True):
            study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL)


def _distribution(optuna: Any, values: Any) -> Any:
    if not (drawn := as_range(values)):
        return optuna.distributions.CategoricalDistribution(list(named(values)))
    kind, low, high = drawn
    if kind == "integers":
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(low, high, log=kind == "log_uniform")


def _text(value: Any) -> str:
    """As it stands in names and on the command line: four digits of a drawn number."""
    return f"{value:.4g}" if isinstance(value, float) else text(value)
