"""`remoco study ratios`: answers of a study as preference ratios with 95 % intervals."""

from __future__ import annotations

import json as json_module
from collections import Counter
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from datamodules.errors import BadShards
from datamodules.storage import write_json


def ratios(answers: list[str], json: str | None = None) -> None:
    """Turn the answers of a study into preference ratios with 95 % intervals (exact binomial).

    Args:
        answers: JSON files that the study's page exported, one per person.
        json: file to write the ratios to.
    """
    results = preference_ratios([read_answers(path) for path in answers])
    width = max(len(system) for result in results.values() for system in result["systems"])
    for question, result in results.items():
        print(f"{question.replace('_', ' ')} (n = {result['n']} answers of {result['raters']} people)")
        for system, entry in result["systems"].items():
            low, high = entry["interval"]
            print(f"  {system:{width}}  {entry['ratio']:6.2%}   95 % interval {low:.2%} to {high:.2%}")
    if json is not None:
        write_json(Path(json), results)
        print(f"wrote {json}")


def read_answers(path: str | Path) -> dict[str, Any]:
    """One person's answers.

    Raises:
        BadShards: not a file that the page exported.
    """
    try:
        found = json_module.loads(Path(path).read_text())
        given = {(entry["pair"], entry["question"]): (entry["winner"], entry["loser"]) for entry in found["answers"]}
        if any(not isinstance(text, str) for key in given for text in (*key, *given[key])):
            raise TypeError("pair, question, winner and loser are text")
        read = {"study": found["study"], "rater": found["rater"], "answers": given, "path": str(path)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadShards(f"{path}: not the answers of a study ({type(error).__name__}: {error})") from error
    if not all(isinstance(read[name], str) for name in ("study", "rater")):
        raise BadShards(f"{path}: not the answers of a study (study and rater are text)")
    if not given:
        raise BadShards(f"{path}: holds no answers")
    return read


def preference_ratios(people: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Question -> for each system, the share of answers that prefer it, with its Clopper-Pearson interval.

    Args:
        people: see `read_answers`; the same person's same answer counts once.

    Raises:
        BadShards: answers of different studies.
    """
    studies = {person["study"]: person["path"] for person in people}
    if len(studies) > 1:
        raise BadShards(f"{' and '.join(studies.values())}: answers of different studies, expected one")
    seen: dict[tuple[str, Any, str], tuple[str, str]] = {}
    for person in people:
        for (pair, question), outcome in person["answers"].items():
            before = seen.setdefault((person["rater"], pair, question), outcome)
            if before != outcome:
                raise BadShards(f"{person['path']}: {person['rater']!r} answered pair {pair} twice, and differently")
    results = {}
    for question in dict.fromkeys(question for _, _, question in seen):
        outcomes = [outcome for (_, _, asked), outcome in seen.items() if asked == question]
        wins = Counter(winner for winner, _ in outcomes)
        systems = sorted({system for outcome in outcomes for system in outcome})
        shares = {}
        for system in systems:
            interval = binomtest(wins[system], len(outcomes)).proportion_ci(0.95, method="exact")
            shares[system] = {
                "ratio": wins[system] / len(outcomes),
                "interval": [float(interval.low), float(interval.high)],
                "n": wins[system],
            }
        raters = len({rater for rater, _, asked in seen if asked == question})
        results[question] = {"n": len(outcomes), "raters": raters, "systems": shares}
    return results
