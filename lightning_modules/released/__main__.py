"""`python -m lightning_modules.released {convert,export}`: another name of `remoco convert` and `remoco export`."""

import sys

from remoco.cli import main

if __name__ == "__main__":
    sys.exit(main())
