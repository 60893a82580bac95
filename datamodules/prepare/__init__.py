"""Videos to shards: `remoco prepare`."""
