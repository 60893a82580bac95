"""`remoco study ratios`: answers of a study as preference ratios with 95 % intervals."""

from __future__ import annotations

import base64
import re
from collections import Counter
from pathlib import Path
from typing import Any

from remoco.common.errors import UserError, one_line, readable
from remoco.common.json_files import parse_json, read_json, read_regular
from remoco.common.whole_files import write_json
from remoco.result_files import is_name
from remoco.study.pages import QUESTIONS, study_id

MAX_BYTES = 1 << 24  # of a person's answers, and of a page without its videos


def ratios(answers: list[str], study: str | None = None, json: str | None = None) -> None:
    """Turn the answers of a study into preference ratios with 95 % intervals (exact binomial).

    Args:
        answers: JSON files that the study's page exported, one per person.
        study: Folder of the study's page; answers must then be to its pairs. Default: answers must only agree.
        json: File to write the ratios to.

    Example:
        remoco study ratios answers-1.json answers-2.json --study study
    """
    asked = None if study is None else read_study(study)
    people = [read_answers(path) for path in answers]
    if asked is not None:
        for person in people:
            _check_asked(person, asked)
    results = preference_ratios(people)
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

    Returns:
        `study`, `rater`, `path`, and `answers`: (pair, question) -> (winner, loser).

    Raises:
        UserError: not a file that the page exported, or one that contradicts itself; one line that names the field.
    """
    try:
        content = read_json(path, MAX_BYTES)
        if not isinstance(content, dict) or not isinstance(content.get("answers"), list):
            raise UserError("answers: expected a list")
        for name in ("study", "rater"):
            _text(content, name, name)
        outcomes: dict[tuple[str, str], tuple[str, str]] = {}
        for index, entry in enumerate(content["answers"]):
            pair, question, winner, loser = (
                _text(entry, name, f"answers[{index}].{name}") for name in ("pair", "question", "winner", "loser")
            )
            if question not in QUESTIONS:
                raise UserError(
                    f"answers[{index}].question: expected {', '.join(QUESTIONS)}, got {readable(question, 40)}"
                )
            if winner == loser:
                raise UserError(f"answers[{index}].winner: expected another system than the loser")
            if outcomes.setdefault((pair, question), (winner, loser)) != (winner, loser):
                raise UserError(
                    f"answers[{index}].winner: pair {readable(pair, 80)} is answered twice, and differently"
                )
    except OSError as error:
        raise UserError(f"{path}: does not read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not the answers of a study: {error}") from error
    if not outcomes:
        raise UserError(f"{path}: holds no answers")
    return {"study": content["study"], "rater": content["rater"], "answers": outcomes, "path": str(path)}


def read_study(path: str | Path) -> dict[str, Any]:
    """What a study's page asks: `id`, `systems`, `questions` and `pairs`.

    Raises:
        UserError: not the folder of a study's page.
    """
    file = Path(path) / "index.html" if Path(path).is_dir() else Path(path)
    try:
        hidden = re.search(r'atob\("([A-Za-z0-9+/=]+)"\)', read_regular(file, MAX_BYTES).decode())
        if hidden is None:
            raise UserError("it has no study in it")
        content = parse_json(base64.b64decode(hidden[1]))
        names = [row["name"] for row in content["pairs"]]
        asked = {"systems": set(content["systems"]), "questions": set(content["questions"]), "pairs": set(names)}
    except OSError as error:
        raise UserError(f"--study {path}: does not read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--study {path}: not the page of a study ({one_line(error)})") from error
    return {"id": study_id(hidden[1]), **asked}


def _check_asked(person: dict[str, Any], asked: dict[str, Any]) -> None:
    """Hold a person's answers against the study's page; UserError where they are to something else."""
    if person["study"] != asked["id"]:
        raise UserError(f"{person['path']}: study: expected {asked['id']}, got {person['study']}")
    for (pair, question), outcome in person["answers"].items():
        if pair not in asked["pairs"] or question not in asked["questions"] or set(outcome) != asked["systems"]:
            raise UserError(f"{person['path']}: {pair}, {question}: not what the study asks")


def _text(entry: Any, name: str, label: str) -> str:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not is_name(value):
        raise UserError(f"{label}: expected a text of printable characters")
    return value


def preference_ratios(people: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Question -> for each system, the share of answers that prefer it, with its Clopper-Pearson interval.

    Args:
        people: see `read_answers`; the same person's same answer counts once.

    Raises:
        UserError: answers of different studies, of more than two systems, or of one person that contradict each other.
    """
    studies = {person["study"]: person["path"] for person in people}
    if len(studies) > 1:
        raise UserError(f"{' and '.join(studies.values())}: answers of different studies, expected one")
    seen: dict[tuple[str, str, str], tuple[str, str]] = {}
    compared: set[str] = set()
    for person in people:
        compared |= {system for outcome in person["answers"].values() for system in outcome}
        if len(compared) > 2:
            raise UserError(f"{person['path']}: compares {', '.join(sorted(compared))[:200]}, expected two systems")
        for (pair, question), outcome in person["answers"].items():
            before = seen.setdefault((person["rater"], pair, question), outcome)
            if before != outcome:
                raise UserError(f"{person['path']}: {person['rater']} answered pair {pair} twice, and differently")
    from scipy.stats import binomtest

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
