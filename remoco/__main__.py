"""`python -m remoco`, the same as `remoco`."""

import sys

from remoco import rooms

if __name__ == "__main__":
    if found := rooms.hidden():
        sys.exit(f"remoco: error: {found}")

    from remoco.cli import main

    sys.exit(main())
