"""`python -m lightning {fit,validate,test,predict}`.

Lightning 2.6 has no `__main__.py` of its own, so setup.cfg maps this file into the package by name; nothing else of
lightning is touched. What it does is in `remoco.training`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def main(args=None):
    """Run the command line; `args` defaults to `sys.argv[1:]`."""
    path, found = list(sys.path), find_spec("remoco")
    if not (found and found.origin and Path(found.origin).with_name("common").joinpath("rooms.py").is_file()):
        # a file or folder of the user's hides it: the folder that a checkout lies in, for one
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "remoco" / "first"))
    from remoco.common import rooms

    sys.path[:] = path
    rooms.keep("python -m lightning")
    from remoco.training import main

    main(args)


if __name__ == "__main__":
    main()
