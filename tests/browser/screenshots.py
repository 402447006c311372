# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run inside the machine, as alice: pictures of the widgets, into ~/screenshots. ``make screenshots``."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

from bgtaskd.web import reference
from tests.browser.app import KEY
from tests.browser.harness import (
    Browser,
    Server,
    Widget,
    client,
    finish,
    is_listening,
    ref,
    talker,
    until,
)

TARGET = Path.home() / "screenshots"
ALL = ("output", "pause", "resume", "stop")


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    server = Server("asgi", 8001)
    browser = Browser()
    try:
        states(browser, server)
        waiting(browser, server)
        small(browser, server)
        output(browser, server)
        administration(browser)
        print(browser.complaints() or "no complaints")
    finally:
        browser.driver.quit()
        server.stop()


def take(browser: Browser, name: str, width: int, height: int = 0) -> None:
    still = "for (const one of document.getAnimations()) { one.pause(); one.currentTime = 650; }"
    browser.run(still)  # and no picture differs from the last one for nothing
    script = "return Math.ceil(document.querySelector('main').getBoundingClientRect().height)"
    browser.size(width, height or browser.run(script), 1.25)
    shot: Any = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    (TARGET / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def bar(browser: Browser, task_id: int, state: str, **attributes: str) -> Widget:
    widget = browser.add("bgtask-progress", ref=ref(task_id, may=ALL), **attributes)
    widget.has_state(state)
    browser.run("arguments[0].style.marginBlockEnd = '1.75rem'", widget.element)
    return widget


def states(browser: Browser, server: Server) -> None:
    browser.media(prefers_color_scheme="light")
    browser.size(640, 800)
    browser.open(server, title="States")
    browser.run("document.querySelector('main p').remove()")
    waiting_one = client.start(["true"], delay=600, name="Newsletter")
    bar(browser, waiting_one, "delayed")
    unknown = talker(name="Counting the stock")
    bar(browser, unknown, "running")
    running = talker(name="Resizing photos")
    client.report(running, finished=62, total=100, message="IMG_2041.jpg")
    bar(browser, running, "running")
    paused = talker(name="Backup of the archive")
    client.report(paused, percent=35, message="archive/2024")
    client.pause(paused)
    bar(browser, paused, "paused")
    done = talker(name="Invoices of November")
    client.report(done, finished=48, total=48, message="48 invoices sent")
    finish(done)
    bar(browser, done, "finished")
    failed = talker(name="Import from the warehouse")
    client.report(failed, percent=71, message="line 2,114: no such article")
    client.send(failed, "bad\n")
    bar(browser, failed, "failed")
    stopped = talker(name="Rebuilding the index")
    client.report(stopped, percent=20)
    client.stop(stopped)
    bar(browser, stopped, "stopped")
    gone = browser.add("bgtask-progress", ref="guessed", label="Somebody else's task")
    gone.has_state("gone")
    browser.run("arguments[0].style.marginBlockEnd = '1.75rem'", gone.element)
    away = bar(browser, running, "running")
    browser.run(
        "arguments[0].render({state: 'unreachable', before: arguments[0].view})", away.element
    )
    take(browser, "states", 640)
    client.resume(paused)
    for one in (unknown, running, paused):
        finish(one)
    client.stop(waiting_one)


def waiting(browser: Browser, server: Server) -> None:
    browser.media(prefers_color_scheme="light")
    browser.size(640, 420)
    browser.open(server)
    task_id = talker(name="Your order")
    client.report(task_id, percent=40, message="Asking the bank")
    wait = browser.add("bgtask-wait", ref=ref(task_id), acceptable_wait="0")
    until(lambda: wait.js("e.querySelector('dialog').open"))
    wait.shows("Asking the bank")
    take(browser, "wait", 640, 420)
    finish(task_id)


def small(browser: Browser, server: Server) -> None:
    browser.media(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    browser.size(320, 480)
    browser.open(server, dir="rtl", title="%D7%97%D7%A0%D7%95%D7%AA")
    browser.run("document.documentElement.lang = 'he'; document.querySelector('main p').remove()")
    task_id = talker(name="הכנת התמונות")
    client.report(task_id, finished=3, total=8, message="תמונה שלישית")
    bar(browser, task_id, "running")
    other = talker(name="גיבוי")
    bar(browser, other, "running")
    take(browser, "small", 320)
    finish(task_id)
    finish(other)


def output(browser: Browser, server: Server) -> None:
    browser.media(prefers_color_scheme="light")
    browser.size(640, 520)
    browser.open(server, title="Output")
    browser.run("document.querySelector('main p').remove()")
    task_id = talker(name="Nightly catalogue")
    for number in range(1, 7):
        client.send(task_id, f"page {number}: {number * 12} articles\n")
    client.report(task_id, finished=6, total=20, message="page 6")
    out = browser.add("bgtask-output", ref=ref(task_id, may=ALL))
    out.shows("page 6")
    strip = browser.add(
        "bgtask-global", name_ref=reference(name="Nightly catalogue", key=KEY, user="me")
    )
    strip.has_state("running")
    until(lambda: "30 %" in strip.text)
    take(browser, "output", 640, 420)
    finish(task_id)


def administration(browser: Browser) -> None:
    sudo = ["sudo", "-n"]
    subprocess.run([*sudo, "systemctl", "start", "bgtaskd-web"], check=True)
    until(lambda: is_listening(8420))
    token = subprocess.check_output([*sudo, "cat", "/run/bgtaskd-web/token"], text=True)
    browser.size(960, 640)
    browser.driver.get("http://127.0.0.1:8420/")
    browser.driver.find_element("name", "token").send_keys(token)
    until(lambda: browser.driver.title == "Tasks – bgtaskd")
    busy = "import time\nblock = []\nfor n in range(1, 600):\n    print('row', n, flush=True)\n"
    busy += "    block.append(bytearray(2 << 20))\n    sum(range(2 * 10**6))\n    time.sleep(0.1)\n"
    task_id = client.start(["python3", "-c", busy], name="Reckoning the year")
    until(lambda: client.get(task_id).state == "running")
    client.report(task_id, finished=14, total=600, message="row 14")
    browser.driver.refresh()
    take(browser, "admin-list", 960, 640)
    browser.driver.get(f"http://127.0.0.1:8420/tasks/{task_id}")
    points = (
        "return document.querySelectorAll('.line')[1]?.getAttribute('points').split(' ').length"
    )
    until(lambda: (browser.run(points) or 0) > 4)
    take(browser, "admin-task", 960, 900)
    client.stop(task_id)


if __name__ == "__main__":
    main()
