# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks of kind http: a real app of another user is requested, on real systemd, in every way it can end."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.houses.container import Container
from tests.system.test_secrets import places_with
from tests.system.test_spine import get, wait

KEY = secrets.token_hex(32)
APP = Path(__file__).with_name("http_app.py")
SERVICE = """
[Service]
User=www-data
RuntimeDirectory=shop
ExecStartPre=openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout /run/shop/key.pem -out /run/shop/cert.pem
ExecStart=python3 /srv/http_app.py
[Install]
WantedBy=multi-user.target
"""
COMMON = "user: www-data\nkey_file: /etc/shop.key\nusers: [alice]\n"
APPS = {
    "shop": "base_url: http://127.0.0.1:8000/shop",
    "unix": "base_url: http://shop.example/shop\nunix_socket: /run/shop/http.sock",
    "tls": "base_url: https://localhost:8443/shop\nca_file: /run/shop/cert.pem",
    "unknown_ca": "base_url: https://localhost:8443/shop",
    "unchecked": "base_url: https://localhost:8443/shop\nverify_tls: false",
    "off": "base_url: http://127.0.0.1:9",
    "nowhere": "base_url: http://nowhere.invalid",
    "hasty": "base_url: http://127.0.0.1:8000/shop\ntimeout: 300ms",
}
# Sends what a task has sent once more, then changed in one part after the other; prints what is answered.
REPLAY = """
import http.client, json, sys
told = json.load(sys.stdin)
headers = {name.replace("_", "-"): told["headers"][name] for name in told["headers"]}
def send(method="POST", path="/shop/echo?a=1", body="x=1", **changed):
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.request(method, path, body, headers | changed)
    answer = connection.getresponse()
    print(answer.status, answer.read().decode().strip())
send()
send("PUT")
send(path="/shop/echo?a=2")
send(path="/shop/slow?a=1")
send(body="x=2")
for name in headers:
    if name.startswith("X-BGTASK"):
        send(**{name: headers[name][:-1] + ("1" if headers[name][-1] == "0" else "0")})
headers = {}
send()
"""


@pytest.fixture(scope="module")
def shop(machine: Container) -> Iterator[Container]:
    """The machine with the app, which runs as www-data; alice may have it requested, bob may not."""
    machine.write("/etc/shop.key", KEY)
    machine.sh("chown www-data:bgtaskd /etc/shop.key; chmod 0440 /etc/shop.key")
    machine.copy_in(APP, "/srv/http_app.py")
    machine.write("/etc/systemd/system/shop.service", SERVICE)
    for name, text in APPS.items():
        machine.write(f"/etc/bgtaskd/apps.d/{name}.yaml", f"{text}\n{COMMON}")
    machine.run(["bgtaskctl", "check-config"])
    machine.run(["bgtaskctl", "reload"])
    machine.systemctl("enable", "--now", "shop.service")
    wait_for_shop(machine)
    yield machine
    machine.systemctl("disable", "--now", "shop.service")
    machine.sh("rm -f /etc/bgtaskd/apps.d/* /etc/systemd/system/shop.service /tmp/go /tmp/hung-up")
    machine.run(["bgtaskctl", "reload"])


def wait_for_shop(machine: Container) -> None:
    machine.wait_for(
        "the app", lambda: machine.sh("test -S /run/shop/http.sock", check=False).returncode == 0
    )


def http(machine: Container, *argv: str, app: str = "shop", user: str = "alice") -> int:
    """`bgtaskctl http`: the task's id."""
    return int(machine.output("bgtaskctl", "http", "--app", app, "-q", *argv, user=user))


def output(machine: Container, task_id: int) -> str:
    return machine.run(["bgtaskctl", "output", str(task_id)], user="alice").stdout


def echoed(machine: Container, task_id: int) -> dict[str, Any]:
    """What of the request arrived."""
    assert wait(machine, task_id)["state"] == "finished"
    told: dict[str, Any] = json.loads(output(machine, task_id))
    return told


def test_a_request_arrives_as_it_was_meant(shop: Container) -> None:
    shop.write("/home/alice/headers", "Authorization: Bearer abc\n\nX-Tenant: 7\n")
    argv = ["--data", "name=Zoë", "--data", "name=B&B", "--cookie", "sid=s3cr3t", "--cookie", "b=2"]
    task_id = http(
        shop, *argv, "--header", "@/home/alice/headers", "POST", "/café crème?q=1&q=a%2Fb"
    )
    task = wait(shop, task_id)
    told = json.loads(output(shop, task_id))
    assert (told["method"], told["path"], told["query"]) == (
        "POST",
        "/caf\xc3\xa9 cr\xc3\xa8me",
        "q=1&q=a%2Fb",
    )
    assert told["body"] == "name=Zo%C3%AB&name=B%26B"
    assert told["type"] == "application/x-www-form-urlencoded"
    assert told["headers"]["COOKIE"] == "sid=s3cr3t; b=2"
    assert told["headers"]["AUTHORIZATION"] == "Bearer abc"
    assert told["headers"]["X_TENANT"] == "7"
    assert told["headers"]["HOST"] == "127.0.0.1:8000"
    assert told["task"] == task_id
    assert task["value"] == {"status": 200, "reason": "OK", "content_type": "application/json"}
    assert (task["name"], task["kind"]) == ("POST /caf%C3%A9%20cr%C3%A8me", "http")
    assert (task["user"], task["result"]) == ("bgtaskd-http", "success")
    assert task["http"] == {
        "app": "shop",
        "method": "POST",
        "path": "/caf%C3%A9%20cr%C3%A8me",
        "query": "q=1&q=a%2Fb",
        "body": "name=Zo%C3%AB&name=B%26B",
        "body_type": "application/x-www-form-urlencoded",
    }
    assert "s3cr3t" not in json.dumps(task)
    assert "Bearer" not in json.dumps(task)


def test_without_the_user_their_session_is_left_out(shop: Container) -> None:
    argv = ["--cookie", "sid=1", "--header", "authorization: Basic x", "--header", "X-A: 1"]
    told = echoed(shop, http(shop, "--anonymous", *argv, "GET", "/echo"))
    assert told["headers"].keys() & {"COOKIE", "AUTHORIZATION", "X_A"} == {"X_A"}


def test_the_response_streams_and_the_route_reports(shop: Container) -> None:
    shop.sh("rm -f /tmp/go")
    task_id = http(shop, "GET", "/slow")
    shop.wait_for("the first line", lambda: output(shop, task_id) == "begun\n")
    shop.wait_for("the report", lambda: get(shop, task_id)["percent"] == 40)
    task = get(shop, task_id)
    assert (task["state"], task["message"]) == ("running", "half of it")
    # It is a task as any other: a scope of its own, whose process is nobody's who has submitted it.
    group = f"/sys/fs/cgroup/bgtask.slice/bgtask-default.slice/{task['unit']}/cgroup.procs"
    pid = shop.read(group).split()[0]
    assert shop.output("stat", "-c", "%U", f"/proc/{pid}") == "bgtaskd-http"
    assert shop.run(["cat", f"/proc/{pid}/environ"], user="alice", check=False).returncode != 0
    [cores] = [one for one in shop.read(f"/proc/{pid}/limits").splitlines() if "core file" in one]
    assert cores.split()[4:6] == ["0", "0"]
    shown = shop.output("bgtaskctl", "status", str(task_id), user="alice")
    assert "Request: GET /slow of app shop" in shown
    shop.sh("touch /tmp/go")
    task = wait(shop, task_id)
    assert (task["state"], task["percent"], task["total"]) == ("finished", 100, 10)
    assert output(shop, task_id) == "begun\ndone\n"


def test_requests_are_forked_from_one_process_that_is_ready(shop: Container) -> None:
    def ready() -> list[dict[str, Any]]:
        shown = shop.output("bgtaskctl", "list", "--kind", "template", "-o", "json")
        return [one for one in json.loads(shown) if one["message"] == "ready"]

    echoed(shop, http(shop, "GET", "/echo"))
    shop.wait_for("a template", lambda: len(ready()) == 1)
    [template] = ready()
    assert template["user"] == "bgtaskd-http"
    shop.sh("rm -f /tmp/go")
    task_id = http(shop, "--cookie", "a=b", "GET", "/slow")
    shop.wait_for("the first line", lambda: output(shop, task_id) == "begun\n")
    group = f"/sys/fs/cgroup/bgtask.slice/bgtask-default.slice/{get(shop, task_id)['unit']}"
    pid = shop.read(f"{group}/cgroup.procs").split()[0]
    parent = shop.output("ps", "-o", "ppid=", "-p", pid).strip()
    assert template["unit"] in shop.read(f"/proc/{parent}/cgroup")
    [cores] = [one for one in shop.read(f"/proc/{pid}/limits").splitlines() if "core file" in one]
    assert cores.split()[4:6] == ["0", "0"]
    assert places_with(shop, KEY) == {"/etc/shop.key"}
    shop.sh("touch /tmp/go")
    assert wait(shop, task_id)["state"] == "finished"


def test_the_same_request_of_the_same_session_is_merged(shop: Container) -> None:
    shop.sh("rm -f /tmp/go")
    ask = ["--cookie", "sid=1", "GET", "/slow"]
    first = http(shop, *ask)
    assert http(shop, *ask) == first
    others = [
        http(shop, "--cookie", "sid=2", "GET", "/slow"),
        http(shop, "--header", "X-Tenant: 2", *ask),
        http(shop, "--no-merge", *ask),
        http(shop, *ask[:-1], "/slow?x=1"),
        http(shop, "GET", "/slow"),
        http(shop, *ask, app="unix"),
        http(shop, "--merge-key", "mine", *ask),
    ]
    assert len({first, *others}) == 8
    shop.sh("touch /tmp/go")
    assert all(wait(shop, one)["state"] == "finished" for one in (first, *others))


@pytest.mark.parametrize(
    ("app", "path", "status", "kind", "words"),
    [
        ("shop", "/none", 22, "HTTPStatus", "HTTP 404 Not Found"),
        ("shop", "/moved", 22, "HTTPStatus", "http://127.0.0.1:8001/elsewhere"),
        ("shop", "/fail", 22, "TaskFailed", "the cellar is flooded"),
        ("shop", "/short", 18, "PrematureEnd", "in the middle of the response"),
        ("hasty", "/silent", 28, "TimedOut", "within 0.3 s"),
        ("off", "/", 7, "ConnectionRefused", "refused"),
        ("nowhere", "/", 6, "NoSuchHost", "no such host"),
        ("unknown_ca", "/echo", 35, "TLSFailed", "see ca_file"),
    ],
)
def test_every_end_is_told_apart(
    shop: Container, app: str, path: str, status: int, kind: str, words: str
) -> None:
    task = wait(shop, http(shop, "GET", path, app=app))
    assert (task["state"], task["result"], task["exit_status"]) == ("failed", "exit-code", status)
    assert task["failure"]["type"] == kind
    assert words in task["error"]
    assert "Traceback" not in output(shop, task["id"])


def test_the_tasks_own_time_limit_is_another(shop: Container) -> None:
    task = wait(shop, http(shop, "--timeout", "300ms", "GET", "/silent"))
    assert (task["state"], task["result"]) == ("failed", "timeout")


@pytest.mark.parametrize("app", ["tls", "unchecked", "unix"])
def test_an_app_may_have_tls_or_a_socket(shop: Container, app: str) -> None:
    told = echoed(shop, http(shop, "--json", '{"a": 1}', "PUT", "/echo", app=app))
    assert (told["method"], told["body"], told["type"]) == ("PUT", '{"a": 1}', "application/json")
    assert told["headers"]["HOST"] == ("shop.example" if app == "unix" else "localhost:8443")


ASYNCIO = """
import asyncio, bgtaskd, json, sys
async def main():
    client = bgtaskd.AsyncClient()
    headers = {"content-type": "application/x-png", "Authorization": "x"}
    told = []
    for options in (
        {"body": bytes(range(256)), "headers": headers, "query": {"a": [1, "\u00fc"]}, "queue": "default"},
        {"json": {"a": None}, "cookies": {"sid": 1}, "as_user": False, "name": "by json"},
    ):
        task_id = await client.http("put", "/echo", app="shop", **options)
        assert not task_id.merged
        task = await client.wait(task_id)
        told.append([task.name, json.loads(await client.output(task_id))])
    print(json.dumps(told))
asyncio.run(main())
"""


def test_the_asyncio_client_asks_the_same(shop: Container) -> None:
    shop.write("/home/alice/asking.py", ASYNCIO)
    done = shop.run(["python3", "/home/alice/asking.py"], user="alice")
    [(name, first), (other, second)] = json.loads(done.stdout)
    assert (name, other) == ("PUT /echo", "by json")
    assert first["body"].encode("latin-1") == bytes(range(256))
    assert (first["type"], first["query"]) == ("application/x-png", "a=1&a=%C3%BC")
    assert (second["type"], second["body"]) == ("application/json", '{"a": null}')
    assert "AUTHORIZATION" in first["headers"]
    assert "COOKIE" not in second["headers"]


def test_a_request_that_waits_can_be_edited(shop: Container) -> None:
    task_id = http(shop, "--delay", "1h", "--cookie", "a=b", "--data", "n=1", "POST", "/echo")
    edit = ["bgtaskctl", "edit", str(task_id)]
    refused = shop.run([*edit, "--", "id"], user="alice", check=False)
    assert refused.returncode != 0
    shop.run([*edit, "--delay", "0s", "--priority", "7"], user="alice")
    told = echoed(shop, task_id)
    assert (told["body"], told["headers"]["COOKIE"]) == ("n=1", "a=b")
    assert get(shop, task_id)["priority"] == 7


def test_a_stop_hangs_up(shop: Container) -> None:
    shop.sh("rm -f /tmp/hung-up")
    task_id = http(shop, "GET", "/hang")
    shop.wait_for("output", lambda: output(shop, task_id) != "")
    shop.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    assert wait(shop, task_id)["state"] == "stopped"
    shop.wait_for("the app", lambda: shop.sh("test -e /tmp/hung-up", check=False).returncode == 0)


def test_a_route_hears_that_its_task_has_ended(shop: Container) -> None:
    shop.sh("rm -f /tmp/told")
    task_id = http(shop, "GET", "/deaf")
    shop.wait_for("a report", lambda: bool(get(shop, task_id)["finished"]))
    shop.run(["bgtaskctl", "stop", str(task_id)], user="alice")
    shop.wait_for("the app", lambda: shop.sh("test -s /tmp/told", check=False).returncode == 0)
    assert shop.read("/tmp/told").startswith("NotPossible")


def test_an_earlier_attempts_route_reports_in_vain(shop: Container) -> None:
    shop.sh("rm -f /tmp/go /tmp/told")
    ask = ["--retries", "1", "--retry-delay", "100ms", "--cookie", "of=both", "GET", "/late"]
    task_id = http(shop, *ask)
    shop.wait_for("the second attempt", lambda: output(shop, task_id) == "begun\n")
    shop.sh("touch /tmp/go")
    task = wait(shop, task_id)
    assert "attempt 1 is over" in shop.read("/tmp/told")
    assert (task["state"], task["attempt"]) == ("finished", 2)


def test_a_request_counts_once_and_unaltered(shop: Container) -> None:
    told = echoed(shop, http(shop, "--data", "x=1", "POST", "/echo?a=1"))
    shop.write("/home/alice/replay.py", REPLAY)
    argv = ["python3", "/home/alice/replay.py"]
    lines = shop.run(argv, user="alice", input=json.dumps(told)).stdout.splitlines()
    assert "403" in lines[0]
    assert "been here already" in lines[0]
    assert len(lines) == 11
    for line in lines[1:-1]:
        assert line.startswith("403")
        assert "signature is wrong" in line or "nonce" in line
    assert lines[-1].startswith("200")  # nobody's: it passes as it is,
    assert json.loads(lines[-1][4:])["task"] == 0  # and is no task's


def test_only_who_is_named_may_have_an_app_requested(shop: Container) -> None:
    def refused(user: str, *argv: str) -> str:
        done = shop.run(["bgtaskctl", *argv], user=user, check=False)
        assert done.returncode != 0
        return done.stderr

    assert "needs an entry under users" in refused("bob", "http", "--app", "shop", "GET", "/echo")
    assert "there is none that you may request" in refused("bob", "http", "GET", "/echo")
    assert "must be one of hasty, nowhere, off" in refused("alice", "http", "GET", "/echo")
    assert "there is no app 'nix'" in refused("alice", "http", "--app", "nix", "GET", "/echo")
    ask = ["http", "--app", "shop", "GET"]
    for path in ("//evil.example/", "/../admin", "/%2e%2e/admin", "relative", "/a%00", "/a%5C"):
        assert "http.path" in refused("alice", *ask, path)
    for header in ("Host: evil", "X-Bgtask-Id: 1", "x_bgtask_id: 1", "Transfer-Encoding: x"):
        assert "not the caller's" in refused("alice", *ask, "/echo", "--header", header)
    assert "in capitals" in refused("alice", "http", "--app", "shop", "CONNECT", "/echo")
    task_id = http(shop, "GET", "/echo")
    assert "belongs to another" in refused("bob", "status", str(task_id))
    wait(shop, task_id)
    path = "/etc/bgtaskd/apps.d/shop.yaml"
    text = shop.read(path)
    shop.write(path, text.replace("alice", "nobody"))
    shop.run(["bgtaskctl", "reload"])
    assert "needs an entry" in refused("alice", "retry", str(task_id))
    shop.write(path, text)
    shop.run(["bgtaskctl", "reload"])
    shop.run(["bgtaskctl", "retry", str(task_id)], user="alice")
    assert wait(shop, task_id)["attempt"] == 2


def test_an_app_lists_and_steers_what_requests_it(shop: Container) -> None:
    text = f"{APPS['shop']}\n{COMMON}".replace("www-data", "bob")
    shop.write("/etc/bgtaskd/apps.d/bobs.yaml", text)
    shop.run(["bgtaskctl", "reload"])
    task_id = http(shop, "--delay", "1h", "GET", "/echo", app="bobs")
    other = http(shop, "--delay", "1h", "GET", "/echo", app="unix")
    shown = shop.output("bgtaskctl", "list", "--all", "-o", "json", user="bob")
    assert [one["id"] for one in json.loads(shown)] == [task_id]
    shop.run(["bgtaskctl", "stop", str(task_id)], user="bob")
    assert wait(shop, task_id)["state"] == "stopped"
    refused = shop.run(["bgtaskctl", "stop", str(other)], user="bob", check=False)
    assert "belongs to another" in refused.stderr
    shop.run(["bgtaskctl", "stop", str(other)], user="alice")
    shop.sh("rm /etc/bgtaskd/apps.d/bobs.yaml")
    shop.run(["bgtaskctl", "reload"])


def test_nothing_else_runs_as_the_user_of_requests(shop: Container) -> None:
    """Not even where the policy names it: such a task could read the apps' keys out of the others."""
    rule = "policy:\n  run_as:\n    - {users: [alice], as: [bgtaskd-http]}\n"
    shop.write("/etc/bgtaskd/conf.d/http.yaml", rule)
    shop.run(["bgtaskctl", "reload"])
    try:
        run = ["bgtaskctl", "run", "--user", "bgtaskd-http", "--", "id"]
        task = wait(shop, int(shop.output(*run, user="alice")))
        assert "is for tasks of kind http" in task["error"]
    finally:
        shop.sh("rm /etc/bgtaskd/conf.d/http.yaml")
        shop.run(["bgtaskctl", "reload"])
    task = wait(shop, http(shop, "--on-end", "id -un", "GET", "/echo"))
    [hook] = json.loads(
        shop.output("bgtaskctl", "list", "--all", "--name", "*:end", "-o", "json", user="alice")
    )
    assert hook["user"] == "alice"
    wait(shop, hook["id"])
    assert output(shop, hook["id"]) == "alice\n"


def test_neither_key_nor_session_is_to_be_found(shop: Container) -> None:
    shop.sh("rm -f /tmp/go")
    session = secrets.token_hex(20)
    shop.write("/home/alice/headers", f"Cookie: sid={session}\n")
    task_id = http(shop, "--header", "@/home/alice/headers", "GET", "/slow")
    shop.sh("rm /home/alice/headers")
    shop.wait_for("the first line", lambda: output(shop, task_id) != "")
    assert places_with(shop, KEY) == {"/etc/shop.key"}
    assert places_with(shop, session) == {f"/run/bgtaskd/secrets/{task_id}"}
    shop.sh("touch /tmp/go")
    wait(shop, task_id)
    assert places_with(shop, session) == set()
    refused = shop.run(["bgtaskctl", "retry", str(task_id)], user="alice", check=False)
    assert "start it anew" in refused.stderr


def test_crashes_and_reboots_lose_no_request(shop: Container) -> None:
    shop.sh("rm -f /tmp/go")
    running = http(shop, "GET", "/slow")
    shop.wait_for("the first line", lambda: output(shop, running) != "")
    shop.sh("pkill -KILL -x bgtaskd; pkill -KILL -x bgtaskd-launche", check=False)
    shop.sh("touch /tmp/go")
    assert wait(shop, running)["state"] == "finished"
    assert output(shop, running) == "begun\ndone\n"

    # Where the machine is slow, it is their time before the app is up again.
    later = ["--delay", "3s", "--retries", "20", "--retry-delay", "500ms", "GET", "/slow"]
    plain = http(shop, *later)
    session = http(shop, "--delay", "3s", "--cookie", "a=b", "GET", "/slow")
    shop.reboot()
    wait_for_shop(shop)
    shop.sh("touch /tmp/go")
    assert wait(shop, plain)["state"] == "finished"
    assert "did not survive" in wait(shop, session)["error"]


def test_a_mistake_in_a_file_leaves_the_app_as_it_was(shop: Container) -> None:
    path = "/etc/bgtaskd/apps.d/shop.yaml"
    text = shop.read(path)
    shop.write(path, text + "verify_tsl: false\n")
    for verb in ("check-config", "reload"):
        told = shop.run(["bgtaskctl", verb], check=False)
        assert told.returncode == 1
        assert f"{path}:5: verify_tsl: no such key; did you mean verify_tls?" in told.stderr
    assert "did you mean verify_tls?" in shop.journal("-u", "bgtaskd.service")
    assert echoed(shop, http(shop, "GET", "/echo"))["method"] == "GET"
    shop.write(path, text)
    shop.run(["bgtaskctl", "reload"])


def test_an_app_that_is_gone_is_named(shop: Container) -> None:
    first = http(shop, "--delay", "1h", "GET", "/echo")
    task_id = http(shop, "--after", str(first), "GET", "/", app="off")
    shop.sh("mv /etc/bgtaskd/apps.d/off.yaml /root/")
    shop.run(["bgtaskctl", "reload"])
    shop.run(["bgtaskctl", "edit", "--delay", "0s", str(first)], user="alice")
    task = wait(shop, task_id)
    assert (task["result"], task["attempt"]) == ("resources", 1)
    assert "'off' is not in apps.d any more" in task["error"]
    shop.sh("mv /root/off.yaml /etc/bgtaskd/apps.d/")
    shop.run(["bgtaskctl", "reload"])


@pytest.mark.parametrize("framework", ["flask", "django", "starlette"])
def test_the_frameworks_of_debian(machine: Container, framework: str) -> None:
    machine.copy_in(APP.with_name("http_frameworks.py"), "/srv/http_frameworks.py")
    machine.run(["python3", "-W", "ignore", "/srv/http_frameworks.py", framework], user="carol")
