"""Our `remoco`, where a file of that name in the working folder would be found: `remoco/common/rooms.py`."""

from remoco_first import load

load(__name__)
