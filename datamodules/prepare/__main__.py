"""`python -m datamodules.prepare [verify | latents]`: another name of `remoco prepare`, `verify` and `latents`."""

import sys

from remoco.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words if words[:1] in (["verify"], ["latents"]) else ["prepare", *words]))
