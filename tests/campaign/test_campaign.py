"""The campaign's short form; the long one is `python -m tests.campaign`."""

import pytest

from tests.campaign.__main__ import campaign
from tests.campaign.table import Attempt, Table


@pytest.mark.slow
def test_a_short_campaign():
    """About a minute: what is killed goes on with the same bits, what is damaged is refused."""
    table = campaign(kills=3, mutations=60, seed=0)
    assert table.well, f"\n{table}"
    assert sum(row[0] for row in table.rows.values()) >= 63 and len(table.rows) >= 7


@pytest.mark.parametrize("name", ["differing", "tracebacks", "hangs", "outside"])
def test_the_table_says_what_is_not_well(tmp_path, name):
    table = Table()
    assert table.add("kind", Attempt(None, tmp_path, survived=True)) and table.well
    assert not table.add("kind", Attempt(None, tmp_path, survived=True, **{name: 3})) and not table.well
    assert str(table).splitlines()[-1].split()[1:3] == ["2", "2"] and "3" in str(table).splitlines()[-1]
    assert not Table().add("kind", Attempt(None, tmp_path))
