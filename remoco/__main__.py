"""`python -m remoco`, the same as `remoco`."""

import sys

from remoco.cli import main

if __name__ == "__main__":
    sys.exit(main())
