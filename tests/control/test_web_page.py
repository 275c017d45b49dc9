"""The page in a real browser: what a person does on it, and what then happens in the bridge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import time

from browser import PATIENCE_S, Browser, chromium
from web_view import WebView

from sdbridge.control.web import WebServer
from sdbridge.status import ProgressStatus, Status, ToldError

pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="Debian's chromium is not installed"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture
def view() -> WebView:
    cues = [
        {"name": "open", "values": {"strength": 0.1}},
        {"name": "storm", "values": {"strength": 1.0}, "follow": 60},
    ]
    return WebView(cues=cues)


@pytest.fixture
def page(browser: Browser, view: WebView) -> Iterator[Browser]:
    """The page on a desk, connected; it must not have logged a single error in the end."""
    with WebServer(view) as server:
        browser.resize(1440, 900)
        browser.open(server.url)
        browser.until("document.querySelector('.state')?.dataset.kind === 'live'")
        browser.faults.clear()
        yield browser
        assert browser.faults == []
        browser.open("about:blank")


def comes_true(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def slider(name: str) -> str:
    return f'[data-name="{name}"] input[type=range]'


def test_the_page_bears_the_bridges_name(browser: Browser) -> None:
    with WebServer(WebView(name="Stage <left>")) as server:
        browser.open(server.url)
        browser.until("document.title === 'Stage <left>'")
        assert browser.eval("document.getElementById('name').textContent") == "Stage <left>"
        browser.open("about:blank")


def test_moving_a_slider_changes_the_parameter_and_the_picture(page: Browser, view: WebView) -> None:
    def brightness() -> float:
        return page.eval(
            "(() => { const c = document.querySelector('.output canvas'); if (!c.width) return -1;"
            " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            " let s = 0; for (let i = 0; i < d.length; i += 4) s += d[i]; return s / (d.length / 4); })()"
        )

    comes_true(lambda: brightness() > 20)
    before = brightness()
    x, y = page.middle(slider("strength"))
    left = page.eval(f"document.querySelector('{slider('strength')}').getBoundingClientRect().x")
    page.mouse("mousePressed", x, y)
    page.mouse("mouseMoved", left + 12, y)
    page.mouse("mouseReleased", left + 12, y, buttons=0)
    comes_true(lambda: view.store.get("strength") < 0.2)
    comes_true(lambda: brightness() < before / 2)


def test_a_slider_goes_by_keyboard_and_back_to_its_default(page: Browser, view: WebView) -> None:
    page.eval(f"document.querySelector('{slider('guidance_scale')}').focus()")
    page.press("End")
    comes_true(lambda: view.store.get("guidance_scale") == 12.0)
    page.until("document.querySelector('[data-name=guidance_scale]').classList.contains('changed')")
    page.click('[data-name="guidance_scale"] .reset')
    comes_true(lambda: view.store.get("guidance_scale") == 1.0)
    view.store.set("tcd_gamma", 0.9, "osc")
    page.until("document.querySelector('[data-name=tcd_gamma]').classList.contains('changed')")
    view.store.set("tcd_gamma", 0.30000001192092896, "osc")  # 0.3 as 32 bits carry it
    page.until("!document.querySelector('[data-name=tcd_gamma]').classList.contains('changed')")


def test_others_move_the_slider_but_never_under_the_finger(page: Browser, view: WebView) -> None:
    value = f"Number(document.querySelector('{slider('strength')}').value)"
    view.store.set("strength", 0.9, "osc")
    page.until(f"Math.abs({value} - 0.9) < 0.001")
    x, y = page.middle(slider("strength"))
    page.mouse("mousePressed", x, y)
    comes_true(lambda: abs(view.store.get("strength") - 0.5) < 0.1)
    view.store.set("strength", 1.0, "osc")
    page.until("document.querySelector('[data-name=strength] .exact').value === '1'")  # the number tells
    assert abs(page.eval(value) - 0.5) < 0.1  # the thumb stays with the finger
    page.mouse("mouseReleased", x, y, buttons=0)
    page.until(f"{value} === 1")


def test_an_exact_number_is_clamped_as_the_table_says(page: Browser, view: WebView) -> None:
    field = '[data-name="steps"] .exact'
    page.eval(f"(() => {{ const f = document.querySelector('{field}'); f.focus(); f.select(); }})()")
    page.type("99")
    page.press("Enter")
    comes_true(lambda: view.store.get("steps") == 8)
    page.until(f"document.querySelector('{field}').value === '8'")


def test_the_prompt_is_sent_by_enter_and_by_a_suggestion(page: Browser, view: WebView) -> None:
    page.eval("document.getElementById('prompt-text').focus()")
    page.type("a lighthouse <b>in fog</b>")
    assert view.store.get("prompt") == ""
    page.press("Enter")
    comes_true(lambda: view.store.get("prompt") == "a lighthouse <b>in fog</b>")
    view.store.set("prompt", "somebody else wrote this", "osc")
    page.eval("document.activeElement.blur()")
    view.store.set("prompt", "and this", "osc")
    page.until("document.getElementById('prompt-text').value === 'and this'")
    page.until("document.querySelector('.chip')")
    page.click(".chip")
    comes_true(lambda: "lighthouse" in view.store.get("prompt") or view.store.get("prompt") != "and this")


def test_a_second_prompt_blends_and_goes(page: Browser, view: WebView) -> None:
    page.click(".more-prompts .add")
    comes_true(lambda: view.store.get("prompt.2.weight") == 0.5)
    page.type("waves")
    page.press("Enter")
    comes_true(lambda: view.store.get("prompt.2.text") == "waves")
    page.click(".blend-line:not(.first) > button.icon")
    comes_true(lambda: view.store.get("prompt.2.text") == "" and view.store.get("prompt.2.weight") == 0.0)


def test_slots_show_only_what_is_used(page: Browser, view: WebView) -> None:
    page.eval("document.querySelector('[data-group=lora]').open = true")
    shown = "[...document.querySelectorAll('[data-group=lora] .slot')].filter((n) => !n.hidden).length"
    assert page.eval(shown) == 0
    view.store.set("lora.3.file", "ink", "osc")
    page.until(f"{shown} === 1")
    page.click("[data-group=lora] .add")
    page.until(f"{shown} === 2")
    view.store.set("lora.3.file", "", "osc")
    page.until(f"{shown} === 1")


def test_what_a_controlnet_sees_is_shown_by_its_eye(page: Browser, view: WebView) -> None:
    shown = "!document.querySelector('.picture.control').hidden"
    assert not page.eval(shown)
    page.eval("document.querySelector('[data-group=controlnet]').open = true")
    view.store.set("controlnet.2.model", "canny", "osc")
    eye = '[data-group=controlnet] .slot[data-slot="2"] button[aria-label="Show what ControlNet 2 sees"]'
    page.until(f"document.querySelector('{eye}') !== null")
    page.click(eye)
    comes_true(lambda: view.store.get("control_output") == 2)
    page.until(f"{shown} && document.querySelector('.picture.control').classList.contains('has-picture')")
    assert "ControlNet 2" in page.eval("document.querySelector('.picture.control figcaption').textContent")
    assert page.eval(f"document.querySelector('{eye}').getAttribute('aria-pressed')") == "true"
    page.click(eye)
    comes_true(lambda: view.store.get("control_output") == 0)
    page.until(f"!({shown})")
    view.store.set("control_output", 1, "osc")
    page.until(shown)
    page.click('.picture.control button[aria-label="Hide the control image"]')
    comes_true(lambda: view.store.get("control_output") == 0)


def test_search_finds_by_address_and_copies_it(page: Browser, view: WebView) -> None:
    page.press("/", "Slash", text="/")
    assert page.eval("document.activeElement.id") == "search"
    page.type("latent feedback")
    page.until("document.querySelector('.found .control')?.dataset.name === 'latent_feedback'")
    page.eval("window.copied = ''; navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.eval("document.querySelector('.found .address').click()")
    page.until("window.copied === '/sdbridge/latent_feedback'")
    page.press("Escape")
    page.until("!document.querySelector('.groups').hidden")


def test_panic_freeze_and_black(page: Browser, view: WebView) -> None:
    fired: list[str] = []
    view.store.subscribe(lambda change: fired.extend(change.triggers))
    page.click(".panic")
    comes_true(lambda: fired == ["panic"])
    page.press("Escape", modifiers=8)  # shift
    comes_true(lambda: fired == ["panic", "panic"])
    page.click("#rescue button:nth-child(2)")
    comes_true(lambda: view.store.get("output.black") is True)
    page.until(
        "document.querySelector('#rescue button:nth-child(2)').getAttribute('aria-pressed') === 'true'"
    )
    page.until("document.querySelector('.notice.held')?.textContent.includes('black')")
    page.click(".notice.held button")
    comes_true(lambda: view.store.get("output.black") is False)
    page.press("f", "KeyF", text="f")
    comes_true(lambda: view.store.get("output.freeze") is True)


def test_presets_are_saved_recalled_renamed_and_deleted(page: Browser, view: WebView) -> None:
    view.store.set("strength", 0.8)
    page.until("document.querySelector('.output canvas').width")  # its picture goes with the preset
    page.eval("document.querySelector('.save-row input').focus()")
    page.type("Fire & <i>ice</i>")
    page.press("Enter")
    comes_true(lambda: [one.name for one in view.show.list()] == ["Fire & <i>ice</i>"])
    page.until("document.querySelector('.preset b')?.textContent === 'Fire & <i>ice</i>'")
    page.until("document.querySelector('.preset').classList.contains('pictured')")
    view.store.set("strength", 0.1)
    fade = "document.querySelector('.fade-row input')"
    page.eval(f"{fade}.value = 0; {fade}.dispatchEvent(new Event('input'))")
    page.click(".preset")
    comes_true(lambda: view.store.get("strength") == 0.8)
    page.until("document.querySelector('.preset').classList.contains('active')")
    page.eval("document.querySelector('[aria-label=\"Rename or delete presets\"]').click()")
    page.until("document.querySelector('.preset-edit input')")
    page.eval(
        "(() => { const f = document.querySelector('.preset-edit input'); f.value = 'Calm';"
        " f.dispatchEvent(new Event('change')); })()"
    )
    comes_true(lambda: [one.name for one in view.show.list()] == ["Calm"])
    page.eval("window.confirm = () => true")
    page.until("document.querySelector('.preset-edit input')?.value === 'Calm'")
    page.eval("document.querySelector('.preset-edit button:last-child').click()")
    comes_true(lambda: view.show.list() == ())
    page.eval("document.querySelector('[aria-label=\"Rename or delete presets\"]').click()")


def test_a_preset_of_another_controller_appears(page: Browser, view: WebView) -> None:
    view.show.save("From the desk")
    page.until("document.querySelector('.preset b')?.textContent === 'From the desk'")


def test_cues_go_next_and_back(page: Browser, view: WebView) -> None:
    page.until("document.querySelectorAll('.cue-list li').length === 2")
    page.click(".go")
    comes_true(lambda: view.store.get("strength") == 0.1)
    page.until("document.querySelector('.cue-list .now b')?.textContent === 'open'")
    page.click(".go")
    comes_true(lambda: view.store.get("strength") == 1.0)
    page.until("document.querySelector('.go').disabled")
    page.click(".cue-buttons button")
    comes_true(lambda: view.store.get("strength") == 0.1)


def test_another_source_is_chosen(page: Browser, view: WebView) -> None:
    page.click("[data-view=connect]")
    page.until("document.querySelectorAll('.texture').length === 6")
    page.eval(
        "(() => { const f = document.querySelector('.texture'); f.querySelector('select').value = 'ndi';"
        " f.querySelector('input').value = 'STAGE (camera 1)'; f.requestSubmit(); })()"
    )
    comes_true(lambda: view.chosen == [("main", "ndi", "STAGE (camera 1)")])
    page.click("[data-view=play]")


def test_an_output_is_added_and_ended_and_an_input_switched_off(page: Browser, view: WebView) -> None:
    page.click("[data-view=connect]")
    page.until("document.querySelectorAll('.texture').length === 6")
    page.eval(
        "(() => { const f = [...document.querySelectorAll('.texture')].at(-1); const [backend, role] ="
        " f.querySelectorAll('select'); backend.value = 'ndi'; role.value = 'control';"
        " f.querySelector('input').value = 'map'; f.requestSubmit(); })()"
    )
    comes_true(lambda: view.chosen == [(1, "ndi", "map", "control")])
    page.click('button[aria-label="End output 1"]')
    comes_true(lambda: view.chosen[1:] == [("off", 0)])
    ends = "document.querySelectorAll('button[aria-label^=\"End output\"]').length"
    view.more_outputs = ("control", "generated")  # added by somebody else
    page.until(f"{ends} === 3")
    view.more_outputs = ()
    page.until(f"{ends} === 1")
    off = 'button[aria-label="Switch the mask input off"]'
    page.until(f"document.querySelector('{off}').hidden")
    assert page.eval("document.querySelector('button[aria-label=\"Switch the main input off\"]').hidden")
    view.more_inputs = ("mask",)
    page.until(f"!document.querySelector('{off}').hidden")
    page.click(off)
    comes_true(lambda: view.chosen[2:] == [("off", "mask")])
    page.click("[data-view=play]")


def test_errors_and_work_are_shown_with_their_next_step(page: Browser, view: WebView) -> None:
    line = "SDB-ENGINE-OOM: 8.0 of 8.0 GB <img src=x onerror=alert(1)>. Set width 512. Output is held."
    told = (ToldError(line, 1, 5.0),)
    view.now = Status(
        errors=(line,), errors_told=told, progress=(ProgressStatus("Building TensorRT", 30, 100, "unet", 90),)
    )
    page.until("document.querySelector('.notice.bad code')?.textContent === 'SDB-ENGINE-OOM'")
    assert "Set width 512" in page.eval("document.querySelector('.notice.bad').textContent")
    assert page.eval("document.querySelectorAll('.notice img').length") == 0
    assert page.eval("document.querySelector('.notice.work progress').value") == pytest.approx(0.3)
    assert "90 s left" in page.eval("document.querySelector('.notice.work').textContent") or page.eval(
        "document.querySelector('.notice.work').textContent.includes('2 min left')"
    )
    page.click(".notice.bad button")
    page.until("!document.querySelector('.notice.bad')")


def told(page: Browser) -> list[str]:
    return page.eval("[...document.querySelectorAll('.notice.bad code')].map((one) => one.textContent)")


def test_an_error_that_is_dismissed_shows_again_when_it_happens_again(page: Browser, view: WebView) -> None:
    line = "SDB-ENGINE-DIED: the engine process ended. It is restarted. The last frame is held."
    view.now = Status(errors=(line,), errors_told=(ToldError(line, 1, 5.0),))
    page.until("document.querySelector('.notice.bad')")
    page.click(".notice.bad button")
    page.until("!document.querySelector('.notice.bad')")
    view.now = Status(errors=(line,), errors_told=(ToldError(line, 2, 0.1),))
    page.until("document.querySelector('.notice.bad code')?.textContent === 'SDB-ENGINE-DIED'")


def test_an_error_that_is_over_leaves_the_top_and_is_counted_until_somebody_looks(
    page: Browser, view: WebView
) -> None:
    old, new = "SDB-FILE-MISSING: long ago.", "SDB-ENGINE-DIED: just now."
    view.now = Status(errors_told=(ToldError(old, 1, 3600.0), ToldError(new, 2, 3.0)))
    page.until("document.querySelector('.notice.bad')")
    assert told(page) == ["SDB-ENGINE-DIED"]
    view.store.set("output.black", True)  # whoever wants black is not to be shown what is long over
    page.until("document.querySelector('.notice.held')?.textContent.includes('is black')")
    assert told(page) == ["SDB-ENGINE-DIED"]
    assert page.eval("document.querySelector('.tabs [data-view=watch]').dataset.unread") == "2"
    page.click("[data-view=watch]")
    page.until("document.querySelectorAll('.errors code').length === 2")
    page.until("document.querySelector('.tabs [data-view=watch]').dataset.unread === ''")
    page.click("[data-view=play]")
    assert page.eval("document.querySelector('.tabs [data-view=watch]').dataset.unread") == ""


def test_a_source_that_stays_away_is_named_until_it_is_there(page: Browser, view: WebView) -> None:
    view.source_line, view.source_there = "ndi, looking for STUDIO <b>", False
    said = "document.querySelector('.notice.held')?.textContent"
    page.until(f"{said}?.includes('comes in: main') && {said}.includes('Ndi, looking for STUDIO <b>.')")
    view.source_there = True
    page.until("!document.querySelector('.notice.held')")


def test_what_is_painted_anew_is_told_from_what_is_sent(page: Browser, view: WebView) -> None:
    page.until("document.querySelector('.numbers dd').textContent === '11 / 24'")


def test_a_fade_does_not_move_the_sliders_about(page: Browser, view: WebView) -> None:
    top = f"document.querySelector('{slider('strength')}').getBoundingClientRect().top"
    before = page.eval(top)
    view.now = Status(fading=True)
    view.store.set_many({"prompt.1.text": "ice", "prompt.8.text": "fire", "prompt.8.weight": 0.7}, "cue")
    time.sleep(2.0)  # longer than the page waits with a slot that nobody fades
    assert abs(page.eval(top) - before) < 8, "a slot is a hundred pixels high"
    view.store.set("prompt.8.text", "")
    view.now = Status()
    view.store.set("prompt.2.text", "a second prompt")
    page.until("document.querySelector('[data-name=\"prompt.2.text\"]')")
    assert not page.eval(
        "document.querySelector('[data-name=\"prompt.8.text\"]')?.checkVisibility() ?? false"
    )


def test_what_has_no_effect_as_things_stand_says_so(page: Browser, view: WebView) -> None:
    mark = "document.querySelector('[data-name=guidance_scale]').classList.contains('idle')"
    assert not page.eval(mark)
    view.now = Status(unused=("guidance_scale",))
    page.until(mark)
    view.now = Status()
    page.until(f"!{mark}")


def test_what_is_in_the_package_is_loaded_with_one_touch(page: Browser, view: WebView) -> None:
    page.click("[data-view=connect]")
    load = "[...document.querySelectorAll('.model')].find((one) => one.textContent.includes('{}'))"
    page.until(load.format("embedded/controlnet_canny"))
    for part in ("embedded/controlnet_canny", "embedded/loras/ink.safetensors"):
        page.eval(f"{load.format(part)}.querySelector('button').click()")
    comes_true(lambda: view.store.get("lora.1.file") == "embedded/loras/ink.safetensors")
    comes_true(lambda: view.store.get("controlnet.1.model") == "embedded/controlnet_canny")
    comes_true(lambda: view.store.get("controlnet.1.preprocessor") == "canny")
    offered = "[...document.getElementById('known-lora').children].map((one) => one.value)"
    assert "embedded/loras/glow.safetensors" in page.eval(offered)
    page.click("[data-view=play]")


def test_the_cue_list_says_that_it_waits_once_somebody_wrote_a_prompt(page: Browser, view: WebView) -> None:
    waits = "document.querySelector('.cue-list .now')?.textContent.includes('waits for Go')"
    page.until("document.querySelectorAll('.cue-list li').length === 2")
    page.click(".cue-list li:nth-child(2) button")
    comes_true(lambda: view.store.get("strength") == 1.0)
    view.now = Status(cue="storm", cue_follows=True)
    page.until("document.querySelector('.cue-list .now')?.textContent.includes('then next after 60 s')")
    view.now = Status(cue="storm", cue_follows=False)
    page.until(waits)


def test_pictures_stop_when_nobody_looks(page: Browser, view: WebView) -> None:
    comes_true(lambda: view.frames > 0)
    page.click("[data-view=watch]")
    page.until("document.querySelector('.log').textContent.includes('INFO')")
    seen = -1
    while seen != view.frames:  # those on their way still come
        seen = view.frames
        time.sleep(0.5)
    page.click("[data-view=play]")
    comes_true(lambda: view.frames > seen)


def test_a_lost_connection_is_said_and_comes_back(browser: Browser) -> None:
    first = WebView()
    server = WebServer(first)
    server.start()
    port = server.port
    browser.open(server.url)
    browser.until("document.querySelector('.state')?.dataset.kind === 'live'")
    server.close()
    browser.until("document.querySelector('.notice.bad')?.textContent.includes('Connection lost')")
    second = WebView(port=port)
    second.store.set("strength", 0.123)
    with WebServer(second):
        browser.until("document.querySelector('.state').dataset.kind === 'live'")
        browser.until(f"Math.abs(document.querySelector('{slider('strength')}').value - 0.125) < 0.003")
        browser.until("!document.querySelector('.notice.bad')")
        browser.open("about:blank")


def test_on_the_network_the_link_unlocks_the_page(browser: Browser) -> None:
    view = WebView(lan=True, token="a-good-long-token")
    with WebServer(view) as server:
        browser.open(server.url)
        browser.until("document.querySelector('.notice')?.textContent.includes('Read only')")
        browser.eval("document.querySelector('.notice input').value = 'a-good-long-token'")
        browser.eval("document.querySelector('form.notice').requestSubmit()")
        browser.until("!document.querySelector('form.notice')")
        browser.eval("localStorage.clear()")
        browser.open("about:blank")
        browser.open(server.url + "/#token=a-good-long-token")
        browser.until("document.querySelector('.state')?.dataset.kind === 'live'")
        assert "token" not in browser.eval("location.href")
        browser.eval(f"document.querySelector('{slider('strength')}').focus()")
        browser.press("End")
        comes_true(lambda: view.store.get("strength") == 1.0)
        browser.open("about:blank")


def test_on_a_phone_nothing_is_cut_off_and_a_thumb_steers(browser: Browser, view: WebView) -> None:
    with WebServer(view) as server:
        browser.resize(390, 844, phone=True)
        browser.open(server.url)
        browser.until("document.querySelector('.state')?.dataset.kind === 'live'")
        for tab in ("play", "show", "connect", "watch"):
            browser.eval(f"document.querySelector('#tabs [data-view={tab}]').click()")
            assert browser.eval("document.documentElement.scrollWidth") <= 390, tab
            top = browser.eval("document.querySelector('.panic').getBoundingClientRect().top")
            assert 0 <= top < 60
        browser.eval("document.querySelector('#tabs [data-view=play]').click()")
        small = browser.eval(
            "[...document.querySelectorAll('.control input[type=range], #rescue button, #tabs button')]"
            ".filter((n) => n.getBoundingClientRect().height > 0)"
            ".filter((n) => n.getBoundingClientRect().height < 40).length"
        )
        assert small == 0
        x, y = browser.middle(slider("strength"))
        browser.touch("touchStart", x, y)
        for step in range(1, 9):
            browser.touch("touchMove", x + 15 * step, y)
        browser.touch("touchEnd")
        comes_true(lambda: view.store.get("strength") > 0.7)
        thumb = f"Number(document.querySelector('{slider('strength')}').value)"
        comes_true(lambda: abs(browser.eval(thumb) - view.store.get("strength")) < 0.01)
        before, revision = view.store.get("strength"), view.store.revision
        x, y = browser.middle(slider("strength"))
        top = browser.eval("scrollY")
        browser.touch("touchStart", x - 60, y)  # a finger that scrolls, and happens to begin on the slider
        for step in range(1, 12):
            browser.touch("touchMove", x - 60, y - 12 * step)
        browser.touch("touchEnd")
        browser.until(f"scrollY > {top}")
        browser.until(f"Math.abs({thumb} - {before}) < 0.01")
        assert (view.store.get("strength"), view.store.revision) == (before, revision)
        browser.open("about:blank")


def test_every_control_has_a_name_for_screen_readers(page: Browser) -> None:
    page.eval("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    nameless = page.eval(
        "JSON.stringify([...document.querySelectorAll('button, input, select, textarea')].filter((n) =>"
        " !(n.getAttribute('aria-label') || n.labels?.length || n.textContent.trim() || n.title))"
        ".map((n) => n.outerHTML.slice(0, 120)))"
    )
    assert json.loads(nameless) == []
