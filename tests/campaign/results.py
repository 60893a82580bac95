"""Result files of others, of runs, scores, sweeps and studies: fields out of their kind, files that are none."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from tests.campaign.values import changed, damaged, written

ENTRY = {"value": 1.25, "protocol": "p", "n": 4, "seconds": 1.5}
KEY = "model.init_args.condition.init_args.region_size"
ANSWER = {"pair": "0", "question": "motion_quality", "winner": "a", "loser": "b"}
PLAN = {
    "configs": [], "values": {KEY: [4, 8]}, "set": {}, "test": [], "seeds": 1, "metrics": ["md_vid"], "search": "grid",
    "trials": 20, "label": None, "cpus": 1, "gpus": None, "files": {},
}  # fmt: skip


def write(rng: random.Random, folder: Path) -> list[Any]:
    """Write the files of one command, one of them damaged; the words of `remoco`."""
    from remoco.sweep import results, trial

    found: dict[str, Any]
    kind = rng.choice(["report", "report", "sweep", "sweep", "study"])
    if kind == "report":
        found = {
            "metrics.json": {"control_error": ENTRY}, "benchmark/b/scores.json": {"object/md_vid_lk": ENTRY},
            "benchmark/b/generated.json": {"root": "nowhere"},
        }  # fmt: skip
        words = ["report", "run", "--out", "../out/page"]
    elif kind == "sweep":
        record = trial.new_record(trial.Trial("t-seed_0", {KEY: "4"}, 0, [], [])) | {"state": "finished"}
        place = trial.record_file(Path(), "t-seed_0").as_posix()
        found = {results.PLAN: dict(PLAN), place: record, "t-seed_0/metrics.json": {"md_vid_lk": ENTRY}}
        words = ["sweep", "table", "run"]
    else:
        found = {f"{name}.json": {"study": "s", "rater": name, "answers": [ANSWER]} for name in ("one", "two")}
        words = ["study", "ratios", "run/one.json", "run/two.json"]
    chosen = rng.choice(sorted(found))
    (folder / "run").mkdir()
    for name, value in found.items():
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(value).encode()
        if name == chosen:
            draw = rng.random()
            if draw < 0.06:
                os.mkfifo(path)
                continue
            if draw < 0.1:
                path.mkdir()
                continue
            data = written(changed(json.loads(data), rng)) if draw < 0.8 else damaged(data, rng)
            if draw > 0.95:
                data = rng.choice([b"[" * 10**6, b'{"a": "\\ud800"}', b"9" * 10**5, b"", b"\xff\xfe{}", b"null"])
        path.write_bytes(data)
    return [words]
