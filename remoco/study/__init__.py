"""`remoco study`: the human study of table 4, as an offline page of blind pairs, and its answers as ratios."""

from remoco.study.pages import pages
from remoco.study.ratios import ratios

__all__ = ["pages", "ratios"]
