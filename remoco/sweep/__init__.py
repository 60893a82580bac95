"""`remoco sweep`: trials over the keys of a YAML, each a run folder, then a table and figures of what came out."""
