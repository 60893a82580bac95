"""`python -m lightning {fit,validate,test,predict}`.

Lightning 2.6 has no `__main__.py` of its own, so setup.cfg maps this file into the package by name; nothing else of
lightning is touched. What it does is in `remoco.training`.
"""

import sys

from remoco import rooms


def main(args=None):
    """Run the command line; `args` defaults to `sys.argv[1:]`."""
    if found := rooms.hidden():  # before anything imports the user's in place of ours
        print(f"python -m lightning: error: {found}", file=sys.stderr)
        sys.exit(2)
    from remoco.training import main

    main(args)


if __name__ == "__main__":
    main()
