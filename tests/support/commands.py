"""The commands as tests call them: in this process, with arguments of any type."""

from remoco.cli import main


def remoco(*arguments) -> int:
    """`remoco ARGUMENTS`; the exit code, also of a parser's error."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def prepare(*arguments) -> int:
    """`python -m datamodules.prepare ARGUMENTS`."""
    return remoco(*arguments) if arguments[0] in ("verify", "latents") else remoco("prepare", *arguments)
