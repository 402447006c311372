# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inside the machine: a browser, a site's server, and words for what a test does with them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import bgtaskd
from bgtaskd.web import reference
from tests.browser.app import KEY

Value = TypeVar("Value")
SECONDS = 20.0
client = bgtaskd.Client()


def until(what: Callable[[], Value], seconds: float = SECONDS) -> Value:
    """What it says once that is true. Raises AssertionError with the last it said."""
    end = time.monotonic() + seconds
    while True:
        said = what()
        if said:
            return said
        assert time.monotonic() < end, f"not within {seconds} s: {said!r}"
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """The site's server: ``kind`` asgi (uvicorn, events) or wsgi (waitress, no thread for events)."""

    def __init__(self, kind: str, port: int) -> None:
        self.kind = kind
        self.port = port
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", "tests.browser.app", self.kind, str(self.port)]
        self.process = subprocess.Popen(argv)
        until(self.is_up)

    def is_up(self) -> bool:
        assert self.process.poll() is None
        return is_listening(self.port)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Browser:
    """A Chromium without a screen."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        for one in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(one)
        for one in ("--hide-scrollbars", "--disable-background-networking", "--no-first-run"):
            options.add_argument(one)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def open(self, server: Server, **query: str) -> None:
        self.driver.get_log("browser")
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        self.driver.get(f"http://127.0.0.1:{server.port}/?{asked}")
        self.run("return customElements.whenDefined('bgtask-output').then(() => true)")

    def add(self, tag: str, **attributes: str) -> Widget:
        """Put a widget into the page; attribute names with _ for -."""
        named = {name.replace("_", "-"): value for name, value in attributes.items()}
        script = """
            const [tag, attributes] = arguments;
            const element = document.createElement(tag);
            for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
            document.getElementById("here").append(element);
            return element;"""
        return Widget(self, self.run(script, tag, named))

    def media(self, **features: str) -> None:
        given = [{"name": name.replace("_", "-"), "value": one} for name, one in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": given})

    def size(self, width: int, height: int, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def complaints(self) -> list[str]:
        """What the browser found wrong with the page: violations of its policy, errors of scripts."""
        said = list(self.run("return window.violations ?? []"))
        log = self.driver.get_log("browser")
        return said + [one["message"] for one in log if one["source"] != "network"]


class Widget:
    """One of our elements in the page."""

    def __init__(self, browser: Browser, element: Any) -> None:
        self.browser = browser
        self.element = element

    def js(self, expression: str) -> Any:
        return self.browser.run(f"const e = arguments[0]; return {expression}", self.element)

    @property
    def state(self) -> str:
        return str(self.js("e.getAttribute('state')"))

    @property
    def text(self) -> str:
        return str(self.js("e.innerText"))

    def bar(self, attribute: str) -> Any:
        return self.js(f"e.querySelector('[role=progressbar]').getAttribute('{attribute}')")

    def button(self, verb: str) -> Any:
        return self.js(f"e.querySelector('.bgtask-{verb}')")

    def shows(self, text: str) -> None:
        until(lambda: text in self.js("e.textContent"))

    def has_state(self, state: str) -> bool:
        return until(lambda: self.state == state)


def ref(task_id: int, **options: Any) -> str:
    return reference(task_id, **{"key": KEY, "user": "me", **options})


def talker(**options: Any) -> int:
    """A running task that ends when its standard input does: with 0, or 3 if it was told "bad"."""
    script = (
        'while read -r line; do if [ "$line" = bad ]; then exit 3; fi; printf "%s\\n" "$line"; done'
    )
    task_id = client.start(["sh", "-c", script], stdin=True, **{"name": "talker", **options})
    until(lambda: client.get(task_id).state == "running")
    return task_id


def stop_all() -> None:
    """A test that failed leaves no task in the slots of the next."""
    for one in client.list(states=("delayed", "queued", "running", "paused")):
        with suppress(bgtaskd.BgtaskdError):
            client.stop(one.id)


def finish(task_id: int) -> None:
    client.send(task_id, "", eof=True)
