# SPDX-License-Identifier: LGPL-2.1-or-later
"""The named tasks among the examples do what they say, as they are installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.houses.container import Container

EXAMPLES = "/usr/share/doc/bgtaskd/examples"
TASKS = "/etc/bgtaskd/tasks.d"
NAMED = "mailsender cache logbatcher docindex docsearch".split()
SOURCES = [
    Path(__file__).parents[2] / "examples" / f"{name}.py"
    for name in ("mail_sender", "memory_cache", "log_batcher", "doc_index")
]


def test_each_is_short() -> None:
    for source in SOURCES:
        assert len(source.read_text().splitlines()) < 40, source


@pytest.fixture(scope="module")
def shop(machine: Container) -> Iterator[Container]:
    """All of them are installed."""
    machine.sh("install -d -o www-data /var/lib/shop /var/lib/shop/mails")
    machine.sh(
        f"cd {EXAMPLES}/tasks.d && install -m 644 {' '.join(f'{one}.yaml' for one in NAMED)} {TASKS}"
    )
    # Nobody waits for a minute here.
    machine.sh(f'sed -i \'s/EVERY: "60"/EVERY: "0.5"/\' {TASKS}/logbatcher.yaml')
    machine.run(["bgtaskctl", "check-config"])
    machine.run(["bgtaskctl", "reload"])
    yield machine
    machine.sh(f"rm {TASKS}/* && bgtaskctl reload; systemctl stop smtpd || true")


def call(machine: Container, name: str, payload: Any) -> Any:
    argv = ["bgtaskctl", "call", name, "-"]
    return json.loads(machine.run(argv, user="alice", input=json.dumps(payload)).stdout)


def test_a_mail_waits_for_its_server(shop: Container) -> None:
    for number in range(3):
        mail = {"to": "ann@shop.example", "subject": f"Order {number} – ready", "text": "Come!\n"}
        assert call(shop, "mailsender", mail) > number
    server = "python3 -m aiosmtpd -n -l localhost:25 -c aiosmtpd.handlers.Mailbox /srv/mails"
    shop.run(["systemd-run", "--unit=smtpd", *server.split()])

    script = (
        "import json, mailbox; print(json.dumps([dict(m) for m in mailbox.Maildir('/srv/mails')]))"
    )

    def mails() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(shop.output("python3", "-c", script))
        return found

    shop.wait_for("three mails", lambda: len(mails()) == 3)
    assert {one["From"] for one in mails()} == {"shop@localhost"}
    assert {one["X-RcptTo"] for one in mails()} == {"ann@shop.example"}
    assert len({one["Message-ID"] for one in mails()}) == 3


def test_a_cache_keeps_what_it_is_told(shop: Container) -> None:
    assert call(shop, "cache", {"get": "prices"}) is None
    assert call(shop, "cache", {"set": "prices", "value": [1, {"ä": None}]}) is True
    assert call(shop, "cache", {"get": "prices"}) == [1, {"ä": None}]
    assert call(shop, "cache", {"set": "old", "value": 1, "seconds": 0}) is True
    assert call(shop, "cache", {"get": "old"}) is None
    assert call(shop, "cache", {"delete": "prices"}) is True
    assert call(shop, "cache", {"get": "prices"}) is None
    refused = shop.run(["bgtaskctl", "call", "cache", "7"], user="alice", check=False)
    assert (refused.returncode, "what?" in refused.stderr) == (1, True)


def test_lines_are_written_many_at_a_time(shop: Container) -> None:
    script = (
        'import bgtaskd; bgtaskd.Runner().submit("logbatcher", [{"n": n} for n in range(1000)])'
    )
    shop.run(["python3", "-c", script], user="alice")
    log = "/var/lib/shop/pages.log"
    shop.wait_for(
        "the lines", lambda: shop.sh(f"wc -l <{log}", check=False).stdout.strip() == "1000"
    )
    lines = [json.loads(line) for line in shop.read(log).splitlines()]
    assert sorted(line["n"] for line in lines) == list(range(1000))
    assert {line["uid"] for line in lines} == {int(shop.output("id", "-u", "alice"))}


def test_no_line_is_lost_with_its_process(shop: Container) -> None:
    submit = 'bgtaskd.Runner().submit("logbatcher", [{"m": n} for n in range(50)])'
    shop.run(["python3", "-c", f"import bgtaskd; {submit}"], user="alice")
    shown = shop.output("bgtaskctl", "workers", "-o", "json", "logbatcher")
    shop.run(["bgtaskctl", "kill", str(json.loads(shown)[0]["processes"][0]["id"])])

    def written() -> set[int]:
        lines = [json.loads(line) for line in shop.read("/var/lib/shop/pages.log").splitlines()]
        return {line["m"] for line in lines if "m" in line}

    shop.wait_for("the lines", lambda: written() == set(range(50)))


def test_documents_are_found(shop: Container) -> None:
    document = "/usr/share/doc/bgtaskd/copyright"
    for _ in range(2):
        call(shop, "docindex", document)
    shop.wait_for("the index", lambda: bool(call(shop, "docsearch", "GNU AND license")))
    [(path, words)] = call(shop, "docsearch", "GNU AND license")
    assert path == document
    assert "[GNU]" in words
    assert call(shop, "docsearch", "GNU NOT license") == []
