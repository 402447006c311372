# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run by pytest inside the machine, as alice: each example as it is installed, from the click to the end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.harness import Browser, Widget, is_listening, until

EXAMPLES = Path("/usr/share/doc/bgtaskd/examples")
COMMANDS = {
    "flask": ["shop.py"],
    "django": ["shop.py", "runserver", "--noreload", "8080"],
    "starlette": ["-m", "uvicorn", "shop:app", "--port", "8080"],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    one = Browser()
    yield one
    one.driver.quit()


@pytest.fixture
def shop(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Browser]:
    name = request.param
    argv = [sys.executable, *COMMANDS[name]]
    with subprocess.Popen(argv, cwd=EXAMPLES / name) as process:
        try:
            until(lambda: is_listening(8080))
            browser.driver.get("http://127.0.0.1:8080/")
            yield browser
            assert [one for one in browser.complaints() if "favicon" not in one] == []
        finally:
            process.kill()


def widget(browser: Browser, tag: str) -> Widget:
    def found() -> Any:
        return browser.run("return document.querySelector(arguments[0])", tag)

    return Widget(browser, until(found))


def press(browser: Browser) -> None:
    browser.run("document.querySelector('form button').click()")


@pytest.mark.parametrize("shop", ["flask"], indirect=True)
def test_flask(shop: Browser) -> None:
    press(shop)
    bar = widget(shop, "bgtask-progress")
    bar.has_state("running")
    widget(shop, "bgtask-output").shows("resizing photo 1\n")
    ref = bar.js("e.ref")
    bar.button("stop").click()
    bar.has_state("stopped")
    shop.driver.delete_all_cookies()  # somebody else
    script = "return fetch(`/bgtask/status/${arguments[0]}`).then((answer) => answer.status)"
    assert shop.run(script, ref) == 404


@pytest.mark.parametrize("shop", ["django"], indirect=True)
def test_django(shop: Browser) -> None:
    strip = widget(shop, "bgtask-global")
    until(lambda: strip.state == "none")
    press(shop)
    until(lambda: shop.run("return document.readyState") == "complete")
    strip = widget(shop, "bgtask-global")
    strip.has_state("running")
    strip.has_state("finished")


@pytest.mark.parametrize("shop", ["starlette"], indirect=True)
def test_starlette(shop: Browser) -> None:
    press(shop)
    wait = widget(shop, "bgtask-wait")
    until(lambda: wait.js("e.querySelector('dialog')?.open"))
    wait.shows("Your photos are in the bath.")
    until(lambda: shop.driver.current_url.endswith("/done"))
