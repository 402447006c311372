# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run by pytest inside the machine, as alice: the administrator's page, as the package has it."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from selenium.webdriver.common.by import By

from tests.browser.harness import (
    Browser,
    Widget,
    client,
    finish,
    is_listening,
    stop_all,
    talker,
    until,
)

PORT = 8420
HERE = f"http://127.0.0.1:{PORT}"
EVIL = "<img src=x onerror=document.body.hacked=1>"


def sudo(*argv: str) -> str:
    done = subprocess.run(["sudo", "-n", *argv], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def leave_none() -> Iterator[None]:
    yield
    stop_all()


@pytest.fixture(scope="module")
def token() -> Iterator[str]:
    assert subprocess.run(["systemctl", "is-enabled", "bgtaskd-web"]).returncode != 0
    assert subprocess.run(["systemctl", "is-active", "bgtaskd-web"]).returncode != 0
    sudo("systemctl", "start", "bgtaskd-web")
    until(lambda: is_listening(PORT))
    yield sudo("cat", "/run/bgtaskd-web/token")
    sudo("systemctl", "stop", "bgtaskd-web")


@pytest.fixture(scope="module")
def browser(token: str) -> Iterator[Browser]:
    one = Browser()
    one.driver.get(f"{HERE}/")
    field = one.driver.find_element(By.NAME, "token")
    field.send_keys("a guess\n")
    until(lambda: "not the token" in one.driver.page_source)
    one.driver.find_element(By.NAME, "token").send_keys(f"{token}\n")
    until(lambda: one.driver.title == "Tasks – bgtaskd")
    yield one
    complaints = [text for text in one.complaints() if "favicon" not in text]
    one.driver.quit()
    assert complaints == []


def ask(path: str, form: Any = None, **headers: str) -> tuple[int, str]:
    """Status and body of a request without a browser; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if form is None else urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(f"{HERE}{path}", data, named)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_nobody_comes_in_without_the_token(token: str) -> None:
    task_id = talker(name="a secret name")
    for path in ("/", "/queues", f"/tasks/{task_id}", f"/tasks/{task_id}/now", "/bgtask/status/x"):
        for headers in ({}, {"Authorization": "Bearer guess"}, {"Cookie": "bgtaskd-web=x"}):
            status, body = ask(path, **headers)
            assert status == 401
            assert "a secret name" not in body
    same = {"Sec_Fetch_Site": "same-origin"}
    assert ask(f"/tasks/{task_id}/kill", {}, **same)[0] == 401
    assert ask("/login", {"token": token})[0] == 403  # from another site
    assert ask("/login", {"token": "x" * 5000}, **same)[0] == 413
    assert client.get(task_id).state == "running"
    assert subprocess.run(["cat", "/run/bgtaskd-web/token"]).returncode != 0
    finish(task_id)


def test_no_other_site_sends_a_form(token: str) -> None:
    task_id = talker()
    send = HTTPConnection("127.0.0.1", PORT, timeout=10)
    own = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
    send.request("POST", "/login", urllib.parse.urlencode({"token": token}), own)
    answer = send.getresponse()
    cookie = answer.getheader("Set-Cookie", "")
    assert (answer.status, "HttpOnly; SameSite=Strict" in cookie) == (303, True)
    held = {"Cookie": cookie.partition(";")[0]}
    assert ask("/", **held)[0] == 200
    for site in ("cross-site", "same-site", "none"):
        assert ask(f"/tasks/{task_id}/kill", {}, Sec_Fetch_Site=site, **held)[0] == 403
    assert ask(f"/tasks/{task_id}/kill", {}, Origin="http://evil.example", **held)[0] == 403
    assert ask(f"/tasks/{task_id}/kill", {}, **held)[0] == 403
    assert client.get(task_id).state == "running"
    assert ask(f"/tasks/{task_id}/kill", {}, Origin=HERE, **held)[0] == 200
    assert client.wait(task_id, 30).state == "stopped"


def test_a_proxy_that_has_the_token(token: str) -> None:
    bearer = {"Authorization": f"Bearer {token}"}
    status, body = ask("/", **bearer, X_Remote_User="mallory")
    assert (status, "mallory" in body, "administrator" in body) == (
        200,
        False,
        True,
    )  # not configured
    task_id = talker()
    said = json.loads(ask(f"/tasks/{task_id}/now", **bearer)[1])
    assert said["ended"] is False
    assert ask(f"/tasks/{task_id}/kill", {}, **bearer)[0] == 200
    assert client.wait(task_id, 30).result == "stopped"
    assert f"administrator: kill task {task_id}" in sudo("journalctl", "-u", "bgtaskd-web")
    for path, wanted in (("/tasks/999999", 404), ("/tasks/x", 404), ("/nothing", 404)):
        assert ask(path, **bearer)[0] == wanted


def test_the_list_is_live_and_can_be_filtered(browser: Browser) -> None:
    marked, other = talker(name=EVIL), talker(name="other")
    browser.driver.get(f"{HERE}/?state=running&name=" + urllib.parse.quote(EVIL))
    shown = "return document.getElementById('live').innerText"
    assert EVIL in browser.run(shown)
    assert "other" not in browser.run(shown)
    client.report(marked, percent=40, message=EVIL)
    until(lambda: "40 %" in browser.run(shown))
    finish(marked)
    until(lambda: "No task is like that" in browser.run(shown))
    assert browser.run("return document.body.hacked") is None
    finish(other)


def test_a_task_and_what_can_be_done_to_it(browser: Browser) -> None:
    task_id = talker(name="on the page", settings={"a": EVIL})
    client.send(task_id, "hello\n")
    browser.driver.get(f"{HERE}/tasks/{task_id}")

    def widget(tag: str) -> Widget:
        return Widget(browser, browser.run("return document.querySelector(arguments[0])", tag))

    bar: Any = widget("bgtask-progress")
    bar.has_state("running")
    widget("bgtask-output").shows("hello\n")
    assert f"journalctl -u bgtask-{task_id}.scope" in browser.driver.page_source
    until(lambda: "Memory" in browser.run("return document.getElementById('chart').innerText"))
    bar.button("pause").click()
    until(lambda: client.get(task_id).state == "paused")
    bar.button("stop").click()
    bar.has_state("stopped")
    browser.driver.refresh()
    browser.run("document.querySelector('form[action$=retry] button').click()")
    until(lambda: client.get(task_id).state == "running")
    finish(task_id)
    client.wait(task_id, 30)
    browser.driver.get(f"{HERE}/tasks/{task_id}")
    browser.run("document.querySelector('form[action$=remove] button').click()")
    until(lambda: browser.driver.title == "Tasks – bgtaskd")
    assert not client.is_live(task_id)


def until_queue(paused: bool) -> None:
    until(lambda: {one.name: one.paused for one in client.queues()}["default"] is paused)


def test_queues(browser: Browser) -> None:
    browser.driver.get(f"{HERE}/queues")
    for deed, paused in (("pause", True), ("resume", False)):
        browser.run(
            f"document.querySelector('form[action=\"/queues/default/{deed}\"] button').click()"
        )
        until_queue(paused)
        until(lambda: browser.run("return document.readyState") == "complete")
    browser.run("document.querySelector('header form button').click()")
    until(lambda: browser.driver.title == "Log in – bgtaskd")
