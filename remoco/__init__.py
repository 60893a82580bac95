"""The door for commands: `remoco prepare | verify | latents | convert | export`. Training's door is `python -m lightning`."""
