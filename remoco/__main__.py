"""`remoco`, and `python -m remoco`, which is the same."""

import sys

from remoco.common import rooms


def main() -> int:
    """Run the command line; the exit code."""
    rooms.keep("remoco")
    from remoco.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
