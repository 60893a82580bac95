"""Zips that somebody made to be opened on the page."""

import io
import struct
import warnings
import zipfile
import zlib

from remoco.common.zip_files import MAX_ENTRIES
from tests.support.page import IMAGE

MB = 2**20


def zipped(files, compression=zipfile.ZIP_DEFLATED, flags=0):
    """A zip of (name, bytes), names as often as they come."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    data = bytearray(file.getvalue())
    if flags:
        for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            data[data.index(mark) + place] |= flags
    return bytes(data)


def patched(data, field, value, size=4):
    """A zip whose directory says otherwise of its first entry; the local header too, of sizes."""
    data = bytearray(data)
    at = data.index(b"PK\1\2") + field
    data[at : at + size] = value.to_bytes(size, "little")
    return bytes(data)


def over_each_other():
    """Two names of the same bytes: the second entry's local header is the first's."""
    data = bytearray(zipped([("first_frame.png", IMAGE), ("first_frame.pnh", IMAGE)], zipfile.ZIP_STORED))
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = (0).to_bytes(4, "little")
    return bytes(data)


def within_each_other(layers=40):
    """One kernel that each entry quotes and ends in, as a zip bomb without recursion is built."""
    kernel = zlib.compress(b"\0" * MB, 9)[2:-4]
    data, entries = b"", []
    for i in range(layers):
        name = f"{i:04}".encode()
        head = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(kernel), MB, len(name), 0) + name
        entries.append((name, len(data)))
        data += head
    data += kernel
    start = len(data)
    for name, offset in entries:
        size = start - offset - 34
        data += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, size, MB, 4, 0, 0, 0, 0, 0, offset) + name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, layers, layers, len(data) - start, start, 0)
    return data + end


SIZE = len(IMAGE)
STORED = zipped([("first_frame.png", IMAGE)], zipfile.ZIP_STORED)
BAD = {
    "bzip2": (zipped([("first_frame.png", b"\0" * MB)], zipfile.ZIP_BZIP2), "expected stored or deflated"),
    "lzma": (zipped([("first_frame.png", b"\0" * MB)], zipfile.ZIP_LZMA), "expected stored or deflated"),
    "zstd": (patched(STORED, 10, 93, 2), "expected stored or deflated"),
    "deflate64": (patched(STORED, 10, 9, 2), "expected stored or deflated"),
    "encrypted": (zipped([("first_frame.png", IMAGE)], flags=1), "encrypted"),
    "twice": (zipped([("first_frame.png", IMAGE)] * 2), "first_frame.png is there twice"),
    "twice by another way": (zipped([("a/first_frame.png", IMAGE), ("a/./first_frame.png", IMAGE)]), "there twice"),
    "over each other": (over_each_other(), "lies over another"),
    "within each other": (within_each_other(), "lies over another"),
    "says less": (patched(zipped([("first_frame.png", IMAGE * 9)]), 24, 10), "first_frame.png: "),
    "says more": (patched(zipped([("first_frame.png", IMAGE)]), 24, SIZE + 7), f"says {SIZE + 7}"),
    "more than there is": (patched(STORED, 20, 2**31), "beyond the end"),
    "another sum": (patched(STORED, 16, 5), "first_frame.png: "),
    "elsewhere": (patched(STORED, 42, 3), "first_frame.png: "),
    "nested": (zipped([("first_frame.png", STORED)]), "first_frame.png: not a readable picture"),
    "nested alone": (zipped([("inner.zip", STORED)]), "no first_frame.png"),
    "large": (zipped([("first_frame.png", b"\0" * 40 * MB)]), "at most 32 MB in all"),
    "large together": (
        zipped([("first_frame.png", b"\0" * 20 * MB), ("meta_data.json", b" " * 20 * MB)]),
        "at most 32 MB in all",
    ),
    "many": (zipped([(str(i), b"") for i in range(MAX_ENTRIES + 1)]), f"at most {MAX_ENTRIES} files"),
    "a folder": (zipped([("first_frame.png/", b"")]), "not a readable picture"),
    "cut": (zipped([("first_frame.png", IMAGE * 9)])[:-30], "not a readable zip"),
    "no name": (patched(STORED, 28, 0, 2), "no first_frame.png|not a readable zip"),
}  # fmt: skip
