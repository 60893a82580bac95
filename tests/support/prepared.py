"""What `remoco prepare` left in a folder: its report, and what its clips say of themselves."""

import json

from datamodules.shards import Shards


def report(out):
    """Name of a video -> its line."""
    lines = map(json.loads, (out / "report.jsonl").read_text("utf-8").splitlines())
    return {line["video"]: line for line in lines}


def metas(out):
    """The JSON member of each clip, in order."""
    found = Shards(str(out))
    return [
        json.loads(found.read(s, c, ["json"])["json"]) for s, count in enumerate(found.counts) for c in range(count)
    ]
