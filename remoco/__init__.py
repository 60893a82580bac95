"""The door for commands, `remoco COMMAND`. Training's door is `python -m lightning`."""
