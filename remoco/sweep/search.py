"""Points that are drawn: at random, or by Optuna's tree-structured Parzen estimator.

Seeded, and drawn in batches: with the same results the same points come again, so a sweep that was killed draws what it
had drawn, and its folder of trials is all that it has to remember.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
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
        raise UserError("search: tpe needs Optuna: pip install -e '.[tpe]' -c constraints.txt") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search(plan: Plan, evaluate: Callable[[list[dict[str, str]]], list[float | None]]) -> None:
    """Draw `plan.trials` points and have them evaluated.

    Args:
        plan: with `search` random or tpe.
        evaluate: runs the trials of some points; the value of each, to be small, None where no trial finished.
    """
    if plan.search == "random":
        evaluate([{key: drawn(key, values, n) for key, values in plan.values.items()} for n in range(plan.trials)])
    else:
        _search_tpe(plan, evaluate)


def drawn(key: str, values: Any, number: int) -> str:
    """Value of a key at the point of this number, as text; it depends on nothing else.

    Args:
        key: key of the plan's values.
        values: values of that key: a range, or names and listed values.
        number: number of the point, from 0.
    """
    share = Random(f"{number} {key}").random()  # of [0, 1): the same on every machine and for every Python
    if not (ranged := as_range(values)):
        names = list(named(values))
        return names[int(share * len(names))]
    kind, low, high = ranged
    if kind == "integers":
        return str(int(low) + int(share * (int(high) - int(low) + 1)))
    if kind == "log_uniform":
        return _text(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    return _text(low + share * (high - low))


def _search_tpe(plan: Plan, evaluate: Callable[[list[dict[str, str]]], list[float | None]]) -> None:
    optuna = load_optuna()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    space = {key: _distribution(optuna, values) for key, values in plan.values.items()}
    for begin in range(0, plan.trials, BATCH):
        asked = [study.ask(space) for _ in range(min(BATCH, plan.trials - begin))]
        values = evaluate([{key: _text(trial.params[key]) for key in space} for trial in asked])
        for trial, value in zip(asked, values, strict=True):
            study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.FAIL)


def _distribution(optuna: Any, values: Any) -> Any:
    if not (ranged := as_range(values)):
        return optuna.distributions.CategoricalDistribution(list(named(values)))
    kind, low, high = ranged
    if kind == "integers":
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(low, high, log=kind == "log_uniform")


def _text(value: Any) -> str:
    """As it stands in names and on the command line: four digits of a drawn number."""
    return f"{value:.4g}" if isinstance(value, float) else text(value)
