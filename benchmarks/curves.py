"""How the control error falls with training: one curve for each run, over the clips that it has seen.

    python benchmarks/curves.py RUN [RUN ...] [--out docs/curves.png]

From the event files of runs whose `Evaluation` has `control_errors`: the error of one stroke for each held-out
clip, as a share of what a clip that stands still would have. Needs the extra `sweep` (matplotlib).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def curve(run: Path) -> tuple[list[int], list[float]]:
    """Clips seen and one stroke's error over standing still's, at each validation of a run."""
    events = EventAccumulator(str(run))
    events.Reload()
    if missing := {f"val/control_error{end}" for end in ("_stroke", "_standing_still")} - {*events.Tags()["scalars"]}:
        raise SystemExit(f"{run}: no {min(missing)} in its event files, expected a run with Evaluation.control_errors")
    stroke, still = (events.Scalars(f"val/control_error_{end}") for end in ("stroke", "standing_still"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    clips = config["data"]["init_args"]["batch_size"]
    return [event.step * clips for event in stroke], [a.value / b.value for a, b in zip(stroke, still, strict=True)]


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", default="docs/curves.png")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.4), dpi=150)
    for run in arguments.runs:
        clips, errors = curve(run)
        panel.plot(clips, errors, marker="o", markersize=4, label=run.name)
        print(f"| {run.name} | " + " | ".join(f"{n:,} clips: {e:.2f}" for n, e in zip(clips, errors)) + " |")
    across = panel.get_yaxis_transform()
    for level, name in ((1.0, "standing still"), (1 / 3, "a third")):
        panel.axhline(level, color="grey", linewidth=0.8, linestyle=":")
        panel.text(0.99, level, name, transform=across, ha="right", va="bottom", fontsize=8)
    panel.set(xscale="log", ylim=(0, 1.15), xlabel="training clips seen", ylabel="error of one stroke")
    panel.grid(axis="y", alpha=0.3)
    panel.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
