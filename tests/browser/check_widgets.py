# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run by pytest inside the machine, as alice: the widgets in Chromium, real tasks behind them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from bgtaskd.web import reference
from tests.browser.app import KEY
from tests.browser.harness import Browser, Server, client, finish, ref, stop_all, talker, until

EVIL = "<img src=x onerror=document.body.hacked=1><script>document.body.hacked=1</script>"

SOCKET = "/run/bgtaskd/control.sock"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    one = Browser()
    yield one
    one.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    yield chromium
    stop_all()
    assert chromium.complaints() == []
    assert chromium.run("return document.body.hacked") is None
    chromium.media()
    chromium.size(1000, 700)
    chromium.driver.get("about:blank")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    both = {"asgi": Server("asgi", 8001), "wsgi": Server("wsgi", 8002)}
    yield both
    for one in both.values():
        one.stop()


@pytest.fixture
def server(servers: dict[str, Server]) -> Server:
    return servers["asgi"]


def sudo(*argv: str) -> None:
    subprocess.run(["sudo", "-n", *argv], check=True)


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_a_bar_from_the_click_to_the_end(
    servers: dict[str, Server], browser: Browser, kind: str
) -> None:
    browser.open(servers[kind])
    task_id = talker(name="Resizing")
    bar = browser.add("bgtask-progress")  # its reference comes later
    assert bar.state == "connecting"
    browser.run("arguments[0].ref = arguments[1]", bar.element, ref(task_id))
    bar.has_state("running")
    assert bar.bar("aria-valuenow") is None
    assert bar.js("e.hasAttribute('indeterminate')")
    client.report(task_id, finished=1, total=4, message="one.jpg")
    until(lambda: bar.bar("aria-valuenow") == "25")
    assert bar.bar("aria-valuetext") == "Running, 25 %, one.jpg"
    assert "Resizing" in bar.text
    assert "one.jpg" in bar.text
    assert "1 of 4" in bar.text
    part = (
        "e.querySelector('.bgtask-fill').offsetWidth / e.querySelector('.bgtask-bar').offsetWidth"
    )
    until(lambda: abs(bar.js(part) - 0.25) < 0.01)
    finish(task_id)
    bar.has_state("finished")
    assert bar.bar("aria-valuenow") == "100"
    until(lambda: bar.js("e.querySelector('[role=status]').textContent") == "Resizing, Done")
    seen = browser.run("return seen")
    assert seen.count(["bgtask-complete", "bgtask-progress", "finished"]) == 1
    assert ["bgtask-change", "bgtask-progress", "running"] in seen


def test_failed_and_stopped_look_other(server: Server, browser: Browser) -> None:
    browser.open(server)
    failing, stopped, waiting = talker(), talker(), client.start(["true"], delay=600)
    looks = [browser.add("bgtask-progress", ref=ref(one)) for one in (failing, stopped, waiting)]
    client.report(failing, percent=40)
    client.send(failing, "bad\n")
    client.stop(stopped)
    assert looks[0].has_state("failed")
    assert looks[1].has_state("stopped")
    assert looks[2].has_state("delayed")
    assert looks[0].bar("aria-valuenow") == "40"
    assert "in 10:0" in looks[2].text
    colours = {
        one.js("getComputedStyle(e.querySelector('.bgtask-figure')).color") for one in looks[:2]
    }
    assert len(colours) == 2
    client.stop(waiting)
    looks[2].has_state("stopped")


def test_markup_in_what_a_task_says_is_text(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker(name=EVIL)
    bar = browser.add("bgtask-progress", ref=ref(task_id))
    out = browser.add("bgtask-output", ref=ref(task_id, may="output"))
    strip = browser.add("bgtask-global", name_ref=reference(name=EVIL, key=KEY, user="me"))
    client.report(task_id, percent=10, message=EVIL)
    client.send(task_id, f"{EVIL}\n")
    for one in (bar, out, strip):
        one.shows(EVIL)
        assert one.js("e.querySelectorAll('img, script').length") == 0
    finish(task_id)
    bar.has_state("finished")


def test_the_buttons_by_keyboard_and_by_mouse(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    bar = browser.add("bgtask-progress", ref=ref(task_id, may=("pause", "resume", "stop")))
    bar.has_state("running")
    assert not bar.button("resume").is_displayed()
    bar.button("pause").send_keys(Keys.ENTER)
    bar.has_state("paused")
    until(lambda: client.get(task_id).state == "paused")
    focused = browser.driver.switch_to.active_element  # it did not get lost
    assert focused == bar.button("resume")
    focused.send_keys(Keys.SPACE)
    bar.has_state("running")
    bar.button("stop").click()
    bar.has_state("stopped")
    assert client.get(task_id).state == "stopped"
    assert bar.js("[...e.querySelectorAll('button')].filter(b => b.checkVisibility()).length") == 0


def test_no_button_without_the_right(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    bar = browser.add("bgtask-progress", ref=ref(task_id))
    bar.has_state("running")
    assert not bar.button("stop").is_displayed()
    finish(task_id)


def test_a_reference_that_is_another_users(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    bar = browser.add("bgtask-progress", ref=ref(task_id, user="you"))
    bar.has_state("gone")
    assert "no longer available" in bar.text
    browser.run("arguments[0].ref = arguments[1]", bar.element, ref(task_id))
    bar.has_state("running")
    finish(task_id)
    bar.has_state("finished")


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_the_daemon_goes_and_comes_back(
    servers: dict[str, Server], browser: Browser, kind: str
) -> None:
    browser.open(servers[kind])
    task_id = talker()
    client.report(task_id, percent=30)
    bar = browser.add("bgtask-progress", ref=ref(task_id))
    bar.has_state("running")
    sudo("systemctl", "restart", "bgtaskd.service")
    client.report(task_id, percent=50)
    until(lambda: bar.bar("aria-valuenow") == "50")
    sudo("mv", SOCKET, f"{SOCKET}.away")
    sudo("systemctl", "restart", "bgtaskd.service")
    bar.has_state("unreachable")
    assert bar.bar("aria-valuenow") == "50"  # the last that was known stays
    sudo("mv", f"{SOCKET}.away", SOCKET)
    finish(task_id)
    bar.has_state("finished")


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_the_server_goes_and_comes_back(
    servers: dict[str, Server], browser: Browser, kind: str
) -> None:
    browser.open(servers[kind])
    task_id = talker()
    bar = browser.add("bgtask-progress", ref=ref(task_id))
    bar.has_state("running")
    servers[kind].stop()
    bar.has_state("unreachable")
    finish(task_id)
    client.wait(task_id, 30)
    servers[kind].start()
    bar.has_state("finished")


def test_a_task_that_is_removed(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = client.start(["true"], delay=600)
    bar = browser.add("bgtask-progress", ref=ref(task_id))
    bar.has_state("delayed")
    client.stop(task_id)
    bar.has_state("stopped")
    client.remove(task_id)
    again = browser.add("bgtask-progress", ref=ref(task_id), label="again")
    again.has_state("gone")


def test_waiting_in_full_focus_and_then_going_on(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    wait = browser.add(
        "bgtask-wait", ref=ref(task_id), acceptable_wait="200", redirect="/thanks?title=x"
    )
    until(lambda: wait.js("e.querySelector('dialog').open"))
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(lambda: wait.js("e.querySelector('dialog').open"))
    finish(task_id)
    until(lambda: "/thanks" in browser.driver.current_url)


def test_nothing_is_hidden_within_the_acceptable_time(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    wait = browser.add("bgtask-wait", ref=ref(task_id), acceptable_wait="20000")
    until(lambda: browser.run("return seen.some(([, , state]) => state === 'running')"))
    assert not wait.js("e.querySelector('dialog').open")
    finish(task_id)
    until(lambda: ["bgtask-complete", "bgtask-wait", "finished"] in browser.run("return seen"))
    assert browser.run("return seen.filter(([name]) => name === 'bgtask-complete').length") == 1
    assert not wait.js("e.querySelector('dialog').open")


def test_waiting_for_what_fails_and_posting_back(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    wait = browser.add("bgtask-wait", ref=ref(task_id), acceptable_wait="0", submit="form")
    client.send(task_id, "bad\n")
    until(lambda: wait.button("close").is_displayed())
    assert "/thanks" not in browser.driver.current_url
    wait.button("close").click()
    until(lambda: not wait.js("e.querySelector('dialog').open"))
    other = talker()
    browser.run("arguments[0].ref = arguments[1]", wait.element, ref(other))
    finish(other)
    until(lambda: "/thanks" in browser.driver.current_url)


@pytest.mark.parametrize("place", ["javascript:document.body.hacked=1", "//evil.example/"])
def test_no_redirect_leaves_the_site(server: Server, browser: Browser, place: str) -> None:
    browser.open(server)
    task_id = talker()
    browser.add("bgtask-wait", ref=ref(task_id), redirect=place)
    finish(task_id)
    until(lambda: ["bgtask-complete", "bgtask-wait", "finished"] in browser.run("return seen"))
    assert browser.driver.current_url.startswith("http://127.0.0.1:8001/?")


def test_the_strip_of_a_name(server: Server, browser: Browser) -> None:
    browser.open(server)
    token = reference(name="nightly", key=KEY, user="me")
    strip = browser.add("bgtask-global", name_ref=token)
    until(lambda: strip.state == "none")
    assert not strip.element.is_displayed()
    for _ in range(2):
        task_id = talker(name="nightly")
        strip.has_state("running")
        until(strip.element.is_displayed)
        client.report(task_id, percent=50)
        until(lambda: strip.bar("aria-valuenow") == "50")
        finish(task_id)
        strip.has_state("finished")


def test_output_comes_as_it_is_printed(server: Server, browser: Browser) -> None:
    browser.open(server)
    task_id = talker()
    out = browser.add("bgtask-output", ref=ref(task_id, may="output"))
    for line in ("first", "second"):
        client.send(task_id, f"{line}\n")
        out.shows(f"{line}\n")
    finish(task_id)
    client.wait(task_id, 30)
    assert out.js("e.textContent") == "first\nsecond\n"


def test_more_bars_than_connections(server: Server, browser: Browser) -> None:
    browser.open(server)
    tasks = [talker(name=f"number {number}") for number in range(4)]  # no more slots
    bars = [browser.add("bgtask-progress", ref=ref(one)) for one in tasks]
    for one in tasks:
        finish(one)
    for bar in bars:
        bar.has_state("finished")


def test_a_page_that_nobody_looks_at_holds_no_connection(server: Server, browser: Browser) -> None:
    browser.open(server)
    watch = """
        const [hidden] = arguments;
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        performance.clearResourceTimings();
        document.dispatchEvent(new Event("visibilitychange"));"""
    asked = "return performance.getEntriesByType('resource').map((one) => one.initiatorType)"
    task_id = talker()
    bar = browser.add("bgtask-progress", ref=ref(task_id))
    bar.has_state("running")
    browser.run(watch, True)
    until(lambda: "fetch" in browser.run(asked))
    finish(task_id)
    client.wait(task_id, 30)
    assert bar.state == "running"  # it asks again in some seconds
    browser.run(watch, False)
    bar.has_state("finished")


def test_small_dark_still_and_from_the_right(server: Server, browser: Browser) -> None:
    browser.size(320, 640)
    browser.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    browser.open(server, dir="rtl")
    long = "a-very-long-name-without-any-place-to-break-it-" * 4
    task_id = talker(name=long)
    bar = browser.add("bgtask-progress", ref=ref(task_id, may=("pause", "resume", "stop")))
    browser.add("bgtask-output", ref=ref(task_id, may="output"))
    bar.has_state("running")
    fill = "e.querySelector('.bgtask-fill')"
    assert bar.js(f"getComputedStyle({fill}).animationName") == "bgtask-sweep"
    ink = bar.js("getComputedStyle(e).color")
    browser.media(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    assert bar.js(f"getComputedStyle({fill}).animationName") == "none"
    assert bar.js("getComputedStyle(e).color") != ink
    client.send(task_id, f"{long}\n")
    client.report(task_id, percent=20, message=long)
    until(lambda: bar.bar("aria-valuenow") == "20")
    right: Any = "Math.round({}.getBoundingClientRect().right)"
    assert bar.js(right.format(fill)) == bar.js(right.format("e.querySelector('.bgtask-bar')"))
    assert browser.run("return document.documentElement.scrollWidth") <= 320
    finish(task_id)
    bar.has_state("finished")
