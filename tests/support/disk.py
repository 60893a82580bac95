"""A disk that is full at some moment."""

import resource
from contextlib import contextmanager


@contextmanager
def full(size):
    """No file can grow beyond `size` bytes, as on a disk that is full at that moment."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
