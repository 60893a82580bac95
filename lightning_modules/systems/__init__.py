"""Systems of other authors, sampled from their released weights: one file or folder each (docs/systems.md).

Nothing of their repositories is in here but facts and formulas; each module names its source and licence.
"""
