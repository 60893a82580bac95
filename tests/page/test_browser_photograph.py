"""The page of the model of photographs: it opens with one, drawn on, and keeps what a person puts in its place."""

import pytest

from tests.page.browser import IN_A_BROWSER, example, until
from tests.support.page import served

pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory) as found:
        yield found


def test_it_opens_with_a_photograph_and_a_reload_keeps_another_drawing(opened):
    page = opened()
    until(page, "remoco.drawing()?.meta.traj_key_points.length === 1")
    size = "(() => { const at = remoco.drawing().meta.traj_key_points[0][0]; return at[0] > 64 && at[1] > 64; })()"
    assert page.evaluate(size)
    example(page, 1)  # a sprite of 64 x 64, without a question: nothing was drawn yet
    until(page, f"!{size}")
    page.wait_for_timeout(1500)  # the browser keeps it
    page.reload()
    page.wait_for_selector(".rm-example")
    until(page, "remoco.drawing()?.meta.traj_key_points.length === 1")
    page.wait_for_timeout(1000)
    assert not page.evaluate(size)
