"""Videos to shards. `python -m datamodules.prepare` and `remoco prepare` are the same command."""
