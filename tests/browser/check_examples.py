# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run by pytest inside the machine, as alice: each example as it is installed, from the click to the end."""

from __future__ import annotations

import os
import secrets
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
    "flask-http": ["reports.py", "/etc/reports.key"],
    "django-http": ["reports.py", "runserver", "--noreload", "8080"],
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
    env = {**os.environ, "REPORTS_KEY": "/etc/reports.key"}
    with subprocess.Popen(argv, cwd=EXAMPLES / name.partition("-")[0], env=env) as process:
        try:
            until(lambda: is_listening(8080))
            browser.driver.delete_all_cookies()
            browser.driver.get("http://127.0.0.1:8080/")
            yield browser
            assert [one for one in browser.complaints() if "favicon" not in one] == []
        finally:
            process.kill()


def widget(browser: Browser, tag: str) -> Widget:
    def found() -> Any:
        return browser.run("return document.querySelector(arguments[0])", tag)

    return Widget(browser, until(found))


def press(browser: Browser, which: str = "form button") -> None:
    """Press a button, and wait for the page after this one."""
    browser.run("window.old = true; document.querySelector(arguments[0]).click()", which)
    until(lambda: browser.run("return !window.old && document.readyState === 'complete'"))


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


@pytest.fixture(scope="module")
def known_app() -> None:
    """What an administrator does once, as http.md has it."""
    app = "base_url: http://127.0.0.1:8080\nuser: alice\nkey_file: /etc/reports.key\n"
    script = f"""
        install -o alice -g bgtaskd -m 0440 /dev/null /etc/reports.key
        echo {secrets.token_hex(32)} >/etc/reports.key
        printf '%s' '{app}' >/etc/bgtaskd/apps.d/reports.yaml
        systemctl reload bgtaskd"""
    subprocess.run(["sudo", "-n", "bash", "-euc", script], check=True)


@pytest.mark.usefixtures("known_app")
@pytest.mark.parametrize("shop", ["flask-http", "django-http"], indirect=True)
def test_a_route_in_the_background(shop: Browser) -> None:
    press(shop)  # log in
    for button, whom in (("form button", "ann"), ("#anonymous", "nobody")):
        press(shop, button)
        bar = widget(shop, "bgtask-progress")
        bar.has_state("finished")
        assert bar.bar("aria-valuenow") == "100"
        widget(shop, "bgtask-output").shows(f"a report for {whom}\n")
