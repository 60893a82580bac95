"""Flags of the commands: flat names from grouped settings, whole names alone, ranges, help, and what `--help` loads."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest

from datamodules.prepare.settings import Processes, Settings
from datamodules.trackers.options import DotOptions
from lightning_modules.config import Sampling
from remoco import __version__, cli, flags
from remoco.common.errors import UserError
from remoco.common.ranges import number
from remoco.generate import Clip, Loading, Motion, SamplingChanges
from remoco.training import refused
from tests.support.commands import remoco
from tests.support.places import REPO

Share = number(float, 0, 1, above=True)


@dataclass(frozen=True)
class Inner:
    """Inner settings."""

    height: int = 3
    """Height in pixels, 95 % of it."""


@dataclass(frozen=True)
class Group:
    """Settings."""

    share: Share = 0.5
    """Share of the clips."""
    least_share: Share | None = None
    """Least share."""
    fit: Literal["crop", "pad"] = "crop"
    """How it fits."""
    shots: bool = False
    """Detect cuts."""
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        if self.share == self.least_share:
            raise UserError("--least-share: expected less than --share")


def command(
    image: str,
    files: list[str],
    group: Group = Group(),  # noqa: B008  # frozen
    out: str | None = None,
    set: Sequence[str] = (),
    scale: float | Literal["drawing"] | None = None,
):
    """Do it.

    Args:
        image: Picture.
        files: Files.
        group: Settings.
        out: Name of the file.
        set: KEY=VALUE.
        scale: Scale.
    """
    print([image, files, group, out, set, scale])


def optional(checkpoint: str = "embedded", /, port: int = 7860):
    """Do it.

    Args:
        checkpoint: Checkpoint.
        port: Port.
    """
    print([checkpoint, port])


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a function as a command with these words: exit code, stdout, stderr."""

    def ran(function, *words):
        monkeypatch.setattr(cli, "_find", lambda arguments: ([], cli.Command("", "")))
        monkeypatch.setattr(cli, "_imported", lambda entry: function)
        code = remoco(*words)
        out, err = capsys.readouterr()
        return code, out, err

    return ran


def test_fields_of_a_group_are_flags_of_their_own_name(run):
    given = [
        "--share",
        "1",
        "--fit",
        "pad",
        "--shots",
        "--inner-height",
        "4",
        "--set",
        "a=1",
        "--set",
        "b=2",
        "--scale",
        "drawing",
    ]
    code, out, _ = run(command, "a.png", "x", "y", *given)
    assert code == 0
    assert out.strip() == str(
        ["a.png", ["x", "y"], Group(1.0, None, "pad", True, Inner(4)), None, ["a=1", "b=2"], "drawing"]
    )
    assert run(command, "a.png", "x")[1].strip() == str(["a.png", ["x"], Group(), None, [], None])
    assert run(optional)[1] == "['embedded', 7860]\n" and run(optional, "my.ckpt", "--port", 1)[1] == "['my.ckpt', 1]\n"


@pytest.mark.parametrize("words, said", [
    (["--share", "0"], "--share: Expected a number above 0 to 1"),
    (["--share", "x"], "--share: Expected a number above 0 to 1"),
    (["--share", "true"], "--share: Expected a number above 0 to 1"),
    (["--least-share", "2"], "--least-share: Expected a number above 0 to 1"),
    (["--least-share", "0.5"], "--least-share: expected less than --share"),
    (["--fit", "x"], "--fit: Expected one of 'crop', 'pad'. Got value: x"),
    (["--scale", "x"], "--scale: Expected a number - Expected one of 'drawing'"),
    (["--inner-height", "1.5"], "--inner-height: Expected a whole number. Got value: 1.5"),
    (["--inner.height", "3"], "unrecognized arguments: --inner.height 3"),
    (["--group", "x.yaml"], "unrecognized arguments: --group x.yaml"),
], ids=str)  # fmt: skip
def test_a_mistake_is_one_line_with_the_flag(run, words, said):
    code, _, err = run(command, "a.png", "x", *words)
    assert code == 2 and said in err and err.count("\n") == 1, err


def test_help_shows_every_field_with_its_sentence_type_and_default(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run(command, "--help")[1]
    for line in (
        r"^usage: remoco image files \[files \.\.\.\] \[options\]$",
        r"files +Files\.\n",
        r"--share SHARE +Share of the clips\. \(number above 0 to 1, default: 0\.5\)\n",
        r"--least-share LEAST_SHARE +Least share\. \(number above 0 to 1\)\n",
        r"--fit \{crop,pad\} +How it fits\. \(default: crop\)\n",
        r"--shots +Detect cuts\.\n",
        r"--inner-height HEIGHT +Height in pixels, 95 % of it\. \(whole number, default: 3\)\n",
        r"--out OUT +Name of the file\.\n",
        r"--set SET +KEY=VALUE\.\n",
        r"--scale SCALE +Scale\. \(number or drawing\)\n",
    ):
        assert re.search(line, re.sub(r"\n {5,}", " ", text), re.MULTILINE), (line, text)


def every_command(menu=cli.TOP, path=()):
    """The words of each command, its function."""
    for word, entry in menu.entries.items():
        if isinstance(entry, cli.Menu):
            yield from every_command(entry, (*path, word))
        else:
            yield (*path, word), cli._imported(entry)


COMMANDS = dict(every_command())


def parser_of(*words):
    return flags.parser(" ".join(("remoco", *words)), COMMANDS[words])


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_a_sentence_for_each_flag_and_an_example_that_parses(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = parser_of(*words)
    for action in parser._actions[1:]:  # without --help
        assert action.help and action.help[0].isupper() and action.help.rstrip(")").endswith("."), action.dest
    *_, last = parser.format_help().strip().splitlines()
    command = shlex.split(last)
    assert parser.format_help().count("\nExample:\n") == 1 and command[: 1 + len(words)] == ["remoco", *words]
    parsed = parser.parse_args(command[1 + len(words) :])
    flags.bound(COMMANDS[words], parsed)
    for each in [line for line in parser.format_help().splitlines() if line.startswith("usage: ")]:
        assert each.startswith(f"usage: remoco {' '.join(words)} ") and each.endswith("[options]")
    assert not re.search(r"type: |Literal|Union|\bnull\b|\[\]|\bstr\b|\bint\b", parser.format_help())


@pytest.mark.parametrize(
    "words", [()] + [(word,) for word, entry in cli.TOP.entries.items() if isinstance(entry, cli.Menu)]
)
def test_a_menu_names_each_command_once_with_a_sentence_that_a_command_s_help_begins_with(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert remoco(*words, "--help") == 0
    text = capsys.readouterr().out
    _, entry = cli._find(list(words))
    for word, each in entry.entries.items():
        sentence = each.help if isinstance(each, cli.Command) else each.about
        assert re.findall(rf"^  {word} +(.*)$", text, re.MULTILINE) == [sentence] and sentence.endswith(".")
    assert len({title for title in re.findall(r"^(\S.*):$", text, re.MULTILINE)} - {"Example"}) == len(entry.groups)
    example = shlex.split(text.partition("Example:\n")[2].splitlines()[0])
    named, command = cli._find(example[1:])
    assert isinstance(command, cli.Command) and named[: len(words)] == list(words)


def test_a_command_s_settings_are_groups_of_its_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = parser_of("generate").format_help()
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles[:2] == ["arguments", "options"] and titles[-1] == "Example" and len(titles) == 8
    motion = text.partition("What is drawn on the picture")[2].partition("\n\n")[0]
    assert re.findall(r"^  --(\S+)", motion, re.MULTILINE) == [field.name for field in dataclasses.fields(Motion)]
    assert "--dot-points" not in parser_of("prepare").format_help().partition("Files and settings of DOT")[0]


def test_version_says_what_is_installed(capsys):
    assert remoco("--version") == 0
    assert capsys.readouterr().out == f"remoco {__version__}\n"


ABBREVIATED = [
    (["generate", "embedded", "a.png", "--num", "3"], "--num-frames"),
    (["generate", "embedded", "a.png", "--motion=3"], "--motion-bucket-id"),
    (["prepare", "videos", "out", "--dot-num", "3"], "--dot-num-tracks"),
    (["prepare", "videos", "out", "--clips", "3"], "--clips-per-shard"),
    (["verify", "out", "--work", "3"], "--workers"),
    (["sweep", "run", "x.yaml", "--seed", "3"], "--seeds"),
    (["generate", "embedded", "a.png", "--tra", "3"], "--tracker or --tracks"),
]


@pytest.mark.parametrize("words, near", ABBREVIATED, ids=str)
def test_an_abbreviated_flag_of_a_command_is_refused_with_the_near_name(capsys, words, near):
    assert remoco(*words) == 2
    err = capsys.readouterr().err
    assert "unrecognized arguments: " in err and f"; did you mean {near}?" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("flag", ["--ima", "--image"])
def test_what_has_its_place_is_not_offered_as_a_flag(capsys, flag):
    assert remoco("generate", "embedded", flag, "a.png") == 2
    assert capsys.readouterr().err.endswith("; image is given without a flag\n")


def test_no_command_takes_an_abbreviated_flag():
    assert len(COMMANDS) > 15
    for words in COMMANDS:
        assert parser_of(*words).allow_abbrev is False, words
    assert flags.menu("remoco", {"verify": "Verify."}).allow_abbrev is False


@pytest.mark.parametrize("flag, near", [
    ("--trainer.max_step=3", "--trainer.max_steps"),
    ("--trainer.max=3", "--trainer.max_epochs, --trainer.max_steps or --trainer.max_time"),
    ("--seed=3", "--seed_everything"),
    ("--model.init_args.control.ra=3", "--control.rank"),
    ("--ckpt=last", "--ckpt_path"),
])  # fmt: skip
def test_an_abbreviated_flag_of_training_is_refused_with_the_near_name(monkeypatch, flag, near):
    monkeypatch.chdir(REPO)
    line = refused(["fit", "--config", "configs/quickstart.yaml", flag])
    assert line is not None and f"; did you mean {near}?" in line and "\n" not in line, line


def test_a_range_of_a_type_holds_for_the_parser_of_a_training(monkeypatch):
    """In the type, before the class is made: the key is named as it stands in the file."""
    monkeypatch.chdir(REPO)
    line = refused(["fit", "--config", "configs/quickstart.yaml", "--model.init_args.sampling.steps=0"])
    assert 'Parser key "sampling.steps": Expected a whole number of 1 to 10000' in line


@pytest.mark.parametrize("make, said", [
    (lambda: Settings(frames=1), "--frames is 1"),
    (lambda: Settings(fps=0.0), "--fps is 0.0"),
    (lambda: Settings(every=-1.0), "--every is -1.0"),
    (lambda: Settings(step=2.0), "--step is 2.0"),
    (lambda: Settings(fill="all"), "--fill is 'all'"),
    (lambda: Settings(width=500), "--width 500"),
    (lambda: Settings("dot", height=64), "--height 64"),
    (lambda: Settings(background="no colour"), "--background"),
    (lambda: Processes(workers=0), "--workers is 0"),
    (lambda: Processes(timeout=0.0), "--timeout is 0.0"),
    (lambda: DotOptions(height=30), "--dot-height is 30"),
    (lambda: DotOptions(num_tracks=True), "--dot-num-tracks is True"),
    (lambda: Motion(background="no colour"), "--background"),
    (lambda: Clip(num_frames=1), "--num-frames is 1"),
    (lambda: Clip(fps=float("nan")), "--fps is nan"),
    (lambda: Clip(height=100), "--height is 100"),
    (lambda: Clip(fit="squash"), "fit is 'squash'"),
    (lambda: SamplingChanges(steps=0), "--steps is 0"),
    (lambda: SamplingChanges(max_guidance_scale=1e9), "--max-guidance-scale is 1000000000.0"),
    (lambda: Loading(dtype="float64"), "--dtype is float64"),
    (lambda: Sampling(steps=0), "sampling.steps is 0"),
])  # fmt: skip
def test_python_bypasses_the_parser_and_not_the_ranges(make, said):
    with pytest.raises(UserError) as error:
        make()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_parsed_settings_are_plain_numbers_and_frozen(run):
    """A checkpoint's record and a worker's task hold them: no class of a parser's may get there."""
    parser = parser_of("prepare")
    parsed = parser.parse_args(["a", "b", "--frames", "4", "--fps", "6", "--dot-num-tracks", "5", "--every", "1"])
    settings = flags.bound(COMMANDS[("prepare",)], parsed).arguments["settings"]
    assert settings == Settings(frames=4, fps=6.0, every=1.0, dot=DotOptions(num_tracks=5))
    kinds = {type(each) for each in (settings.frames, settings.fps, settings.every, settings.dot.num_tracks)}
    assert kinds == {int, float}
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.frames = 3


def test_help_and_a_mistake_load_no_networks():
    """torch takes seconds, diffusers more: of no command's help, and of no mistyped flag."""
    calls = [[*words, flag] for words in [(), *COMMANDS] for flag in ("--help", "--mistyped")]
    code = (
        "import json, sys\nfrom remoco.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        main(words)\n"
        "    except SystemExit:\n        pass\n"
        "    heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'ray', 'tensorboard', 'fastapi'}\n"
        "    if found := heavy & set(sys.modules):\n        sys.exit(f'{words} loaded {found}')\n"
    )
    command = [sys.executable, "-c", code, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0 and done.stdout.count("usage: remoco ") == len(calls) // 2, done.stderr
    assert len(done.stderr.splitlines()) == len(calls) // 2, done.stderr
