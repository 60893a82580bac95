"""`python -m datamodules.prepare [verify | latents]`: another name of `remoco prepare`, `verify` and `latents`."""

import sys

from remoco.common import rooms

if __name__ == "__main__":
    rooms.keep("python -m datamodules.prepare")
    from remoco.cli import main

    words = sys.argv[1:]
    sys.exit(main(words if words[:1] in (["verify"], ["latents"]) else ["prepare", *words]))
