"""Kills and mutations by chance: `python -m tests.campaign --kills N --mutations N --seed S`."""
