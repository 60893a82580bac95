"""The page in a browser: its policy holds, its parts have names and contrast, the keyboard and the settings work."""

import pytest

from tests.page.browser import IN_A_BROWSER, camera, drag, example, generate, meta, set_number, tracks, until

pytestmark = IN_A_BROWSER

NAMELESS = """[...document.querySelectorAll('button, input, select, summary, a[href], video, canvas, [role]')]
    .filter((e) => e.role !== 'status' && !e.closest('[aria-hidden=true]'))
    .filter((e) => e.checkVisibility() && !e.ariaLabel && !e.textContent.trim() && !e.labels?.length)
    .map((e) => e.outerHTML)"""
# WCAG's contrast of each text that is shown on the nearest opaque background; disabled controls are not held to it
FAINT = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => numbers(colour).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => {
        const colour = e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)';
        return (numbers(colour)[3] ?? 1) < 1 ? behind(e.parentElement) : colour;
    };
    const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const found = [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility({visibilityProperty: true}))
        .filter((e) => (own(e) || e.matches('input[type=number], select')) && !e.closest(':disabled, option'));
    const ratios = found.map((e) => {
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className || e.tagName, e.textContent.trim()];
    });
    return [ratios.length, ratios.filter(([ratio]) => ratio < 4.5)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_has_a_name_and_a_contrast_that_can_be_read(opened, scheme):
    page = opened(color_scheme=scheme, viewport={"width": 1440, "height": 900})

    def check(least):
        assert page.evaluate(NAMELESS) == []
        count, faint = page.evaluate(FAINT)
        assert count >= least and not faint

    check(20)
    example(page)
    page.click("[data-tool=brush]")
    page.check(".rm-own")
    set_number(page, "steps", 2)
    check(40)
    for kind in ("presets", "poses", "driving"):
        camera(page, kind)
        check(30)
    camera(page, "still")
    generate(page)
    check(35)
    page.click("[data-tab=draw]")
    page.click("[data-do=clear]")
    generate(page, "error")
    check(30)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_are_readable_while_the_pointer_is_over_them(opened, scheme):
    """Pressed ones too: white text on a light ground is what a rule for `:hover` alone makes of them."""
    page = opened(color_scheme=scheme)
    example(page)
    page.click("[data-tool=brush]")
    page.check(".rm-own")
    set_number(page, "steps", 2)
    generate(page)
    seen = 0
    for tab in ("draw", "camera"):
        page.click(f"[data-tab={tab}]")
        for button in page.locator("button:visible:enabled, a.rm-button:visible").all():
            button.hover()
            page.wait_for_timeout(30)
            _, faint = page.evaluate(FAINT)
            assert not faint, button.evaluate("e => e.outerHTML")
            seen += button.get_attribute("aria-pressed") == "true"
    assert seen >= 4  # the tool, the kind of camera, the result twice


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_what_is_touched_is_44_pixels(opened, width):
    page = opened(viewport={"width": width, "height": 844})
    small = """[...document.querySelectorAll('button, a[href], select, input, summary, [role=tab]')]
        .filter((e) => e.checkVisibility({visibilityProperty: true}))
        .map((e) => [e.type === 'checkbox' ? e.closest('label') : e, e])
        .filter(([e]) => Math.min(e.offsetWidth, e.offsetHeight) < 44).map(([_, e]) => e.outerHTML)"""
    assert page.evaluate(small) == []
    example(page)
    page.click("[data-tool=brush]")
    page.check(".rm-own")
    set_number(page, "steps", 2)
    set_number(page, "seed", 5)
    generate(page)
    assert page.evaluate(small) == []
    for kind in ("presets", "poses", "driving"):
        camera(page, kind)
        assert page.evaluate(small) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(color_scheme=scheme)

    def check():
        found = axe.run(page).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert not serious, [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in serious]

    check()
    example(page)
    page.click("[data-tool=brush]")
    page.check(".rm-own")
    check()
    set_number(page, "steps", 2)
    for seed in (1, 2):
        set_number(page, "seed", seed)
        generate(page)
        page.wait_for_selector("#rm-generate:enabled")
    page.click("[data-result=compare]")
    page.mouse.move(0, 0)
    check()
    for kind in ("presets", "poses", "driving"):
        camera(page, kind)
        check()
    generate(page, "error")
    page.click("[data-tab=draw]")
    page.click("[data-tool=track]")
    drag(page, [(10, 50), (40, 50)])
    page.click(".rm-example >> nth=1")
    page.wait_for_selector("dialog.rm-ask[open]")
    check()


def test_points_are_placed_and_moved_by_the_keyboard_and_announced(opened):
    page = opened()
    example(page)
    page.click("[data-do=clear]")
    page.focus(".rm-canvas")
    spoken = page.locator("#rm-spoken")
    assert spoken.get_attribute("aria-live") == "polite"

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_timeout(50)
        return spoken.inner_text()

    assert press("ArrowRight") == "32, 32 of 64 by 64"
    assert press("ArrowLeft", "ArrowLeft", "ArrowUp") == "28, 30 of 64 by 64"
    assert press("Enter") == "Track 1 starts at 28, 30"
    press("ArrowRight", "ArrowRight", "Shift+ArrowRight")
    assert press("Enter") == "Track 1, point 2 at 33, 30"
    assert press("Escape") == "Track 1 has ended"
    press("ArrowDown", "ArrowDown", "Enter", "Escape")
    assert [track.tolist() for track in tracks(page)] == [[[28, 30], [33, 30]], [[33, 34]]]
    press("ArrowUp", "ArrowUp")
    assert press("Enter") == "Track 1 is chosen"  # its line is under the cursor
    assert press("n") == "Moving point 1 of 2 of track 1, at 28, 30"
    assert press("n") == "Moving point 2 of 2 of track 1, at 33, 30"
    press("ArrowDown", "Shift+ArrowDown")
    assert press("Enter") == "The point stays at 33, 33"
    assert tracks(page)[0].tolist() == [[28, 30], [33, 33]]
    press("Control+z")
    assert tracks(page)[0].tolist() == [[28, 30], [33, 30]]  # the move is one step
    assert press("p") == "Moving point 1 of 1 of track 2, at 33, 34"
    press("Escape", "Backspace")
    assert len(tracks(page)) == 1
    press("b", "ArrowUp")
    assert "Painted around" in press("Enter") and len(page.evaluate("remoco.drawing().runs")) > 2
    page.select_option(".rm-preset", "steady")
    page.focus(".rm-plot")
    assert press("ArrowUp") == "Point 2 of 2 at 100 percent of the clip"
    assert press("ArrowLeft") == "Point 2 of 2 at 95 percent of the clip"
    assert abs(meta(page)["times"][0][1] - 0.95) < 1e-6


def test_it_is_used_by_the_keyboard_alone(opened):
    page = opened()

    def reach(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    reach(".rm-example")
    page.keyboard.press("Enter")
    until(page, "remoco.drawing()?.meta.traj_key_points.length === 1")
    reach("[role=tab]")
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tab][data-tab=camera]").get_attribute("aria-selected") == "true"
    reach("[data-kind=presets]")
    page.keyboard.press("Space")
    reach("[data-preset=pan] input[type=range]")
    page.keyboard.press("ArrowRight")
    assert meta(page)["camera"] == {"pan": 0.01}
    reach("#rm-generate")
    page.keyboard.press("Enter")
    page.wait_for_selector(".rm-result[data-state=done]")
    reach("#rm-steps input[type=number]")
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    reach("#rm-generate")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.rm-about').textContent.startsWith('seed 0, 3 steps')")


def test_settings_are_bounded_set_back_and_drawn(opened):
    page = opened()
    example(page)

    def sent():
        with page.expect_request("**/page/generate") as asked:
            page.click("#rm-generate")
        page.wait_for_selector("#rm-generate:enabled")
        return asked.value.post_data_json["settings"]

    first = sent()
    assert first["motion_bucket_id"] == "drawing" and first["steps"] == 4 and first["size"] == "64 x 64"
    for typed, kept in (("1000", "100"), ("0", "1"), ("2.6", "3"), ("", "3")):
        set_number(page, "steps", typed)
        assert page.locator("#rm-steps input[type=number]").input_value() == kept
    assert page.locator("#rm-steps input[type=range]").input_value() == "3"
    page.locator("#rm-first_guidance input[type=range]").fill("1.5")
    page.uncheck("#rm-motion_bucket_id input[type=checkbox]")
    set_number(page, "motion_bucket_id", 0)
    page.click("#rm-again")
    page.select_option("#rm-size select", "128 x 128")
    second = sent()
    assert second["steps"] == 3 and second["first_guidance"] == 1.5 and second["motion_bucket_id"] == 0
    assert second["seed"] != first["seed"] and "8 frames of 128 x 128" in page.locator(".rm-about").inner_text()
    page.check("#rm-motion_bucket_id input[type=checkbox]")
    page.select_option("#rm-size select", "64 x 64")
    for name in ("steps", "first_guidance", "seed"):
        page.click(f"#rm-{name} .rm-reset")
    assert page.locator("#rm-steps .rm-reset").is_hidden() and sent() == first
    set_number(page, "frames", 5)
    assert "of 5" in page.locator(".rm-frame").inner_text()


def test_the_policy_holds_in_the_browser(server, chromium):
    """A script that comes in by a fault would not run, no form leaves, and no other page has this one in a frame."""
    port, _ = server
    context = chromium.new_context()
    page = context.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector(".rm-example")
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.append('window.ran = 1');
        document.body.append(script);
    }""")
    page.wait_for_timeout(300)
    assert page.evaluate("window.ran") is None and any("TrustedScript" in text for text in said), said
    handler = "document.querySelector('h1').setAttribute('onclick', 'window.ran = 2')"
    for text in (handler, "document.body.innerHTML = '<b>x</b>'", "document.body.setAttribute('style', 'color: red')"):
        page.evaluate(f"() => {{ try {{ {text} }} catch {{}} }}")
    page.click("h1")
    assert page.evaluate("window.ran") is None and page.locator(".rm-canvas").count() == 1
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    outer = context.new_page()
    outer.set_content(f"<iframe src='http://127.0.0.1:{port}/'></iframe>")
    outer.wait_for_timeout(1000)
    assert all(frame.query_selector(".rm-canvas") is None for frame in outer.frames)
    context.close()


def test_a_drag_after_a_fault_still_draws(opened):
    """A refused request is told in a line, and what was drawn stays."""
    page = opened()
    example(page)
    page.route("**/page/paths", lambda route: route.fulfill(status=400, json={"error": "the server is busy"}))
    drag(page, [(10, 40), (50, 40)])
    page.wait_for_selector(".rm-error:has-text('the server is busy')")
    page.unroute("**/page/paths")
    drag(page, [(10, 50), (50, 50)])
    assert len(tracks(page)) == 3 and page.locator(".rm-error").count() == 0
