"""Zips that somebody made to be opened on the page: what they would become decides nothing before it is bounded."""

import tracemalloc
import zipfile

import pytest

from remoco.common.errors import UserError
from remoco.common.zip_files import Archive
from remoco.page import exchange
from remoco.page.archives import first_sample
from tests.support.page import IMAGE, ROUND, sent
from tests.support.zips import BAD, MB, within_each_other, zipped


@pytest.mark.parametrize("kind", BAD)
def test_a_zip_that_cannot_be_used_is_one_line(kind):
    data, said = BAD[kind]
    with pytest.raises(UserError, match=said) as caught:
        exchange.opened(sent(a__zip=data))
    text = str(caught.value)
    assert text.startswith(("a.zip: ", "first_frame.png: "))
    assert "\n" not in text and text.isprintable() and len(text) < 300


def test_names_are_shown_in_characters_that_anybody_can_print():
    data = zipped([("a/first_frame.png", b"\0" * 40 * MB)])
    for name in ("a/first_\x1b[31m.png", "\u202eab/first_frame.png"):
        bad = zipped([(name, IMAGE)] * 2)
        with pytest.raises(UserError, match="there twice") as caught:
            Archive(bad, "a.zip", 1)
        assert str(caught.value).isascii() and str(caught.value).isprintable()
    assert Archive(data, "a.zip", 99).entries.keys() == {"a/first_frame.png"}


def test_stored_and_deflated_are_read_and_several_zips_share_the_bound():
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        files = [("é/first_frame.png", IMAGE), ("é/meta_data.json", ROUND)]
        found, count = first_sample(zipped(files, compression), "a.zip", 10**6)
        assert found == {"first_frame.png": IMAGE, "meta_data.json": ROUND} and count == 1
    filled = zipped([("first_frame.png", b"\0" * 17 * MB)])
    with pytest.raises(UserError, match="b.zip: first_frame.png: expected at most 1[45] MB in all"):
        exchange.opened(sent(a__zip=filled, b__zip=filled))


@pytest.mark.parametrize("pack", ["bzip2", "lzma", "deflate", "quoted"])
def test_opening_one_takes_little_memory(pack):
    """Of what Python and its decompressors take; 2.7 KB took 7.8 GB."""
    kinds = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA, "deflate": zipfile.ZIP_DEFLATED}
    data = zipped([("first_frame.png", b"\0" * 128 * MB)], kinds[pack]) if pack in kinds else within_each_other(2000)
    body = sent(bomb__zip=data)
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            exchange.opened(body)
        assert tracemalloc.get_traced_memory()[1] < 40 * MB
    finally:
        tracemalloc.stop()
