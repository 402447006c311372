# SPDX-License-Identifier: LGPL-2.1-or-later
"""So many pages open on one worker of an app: its memory, its processor time, its connections to the daemon.

Run inside a container as a user of group bgtask:  pages.py [PAGES]
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import bgtaskd
from bgtaskd.web import asgi, reference

KEY = "the-key-of-the-bench-of-pages"
REPORTS = 50
INTERVAL = 0.2


def main(pages: int) -> None:
    """Open the pages, report at five times a second for ten seconds, and print a line for each figure."""
    client = bgtaskd.Client()
    task_id = client.start(["sleep", "600"], name="bench of pages")
    while client.get(task_id).state != "running":
        time.sleep(0.02)
    try:
        asyncio.run(measure(client, task_id, pages))
    finally:
        client.stop(task_id)


async def measure(client: bgtaskd.Client, task_id: int, pages: int) -> None:
    """See main()."""
    app = asgi.Page(key=KEY, user=lambda scope: "me")
    memory, sockets = pss(), connections()
    told = [0] * pages
    waits: list[float] = []
    began = {"at": 0.0}
    leave = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def page(number: int) -> None:
        async def send(message: dict[str, Any]) -> None:
            if b"data:" in message.get("body", b""):
                told[number] += 1
                if told[number] > 1:
                    waits.append(time.perf_counter() - began["at"])

        token = reference(task_id, key=KEY, user="me")
        scope = {"type": "http", "method": "GET", "path": f"/events/{token}", "headers": []}
        await app(scope, receive, send)

    opened = [asyncio.ensure_future(page(number)) for number in range(pages)]
    while not all(told):
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)
    waits.clear()
    print(f"{pages} pages: {(pss() - memory) / pages:.1f} KiB PSS each,", end=" ")
    print(f"{connections() - sockets} connections to the daemon")
    before = cpu()
    for number in range(REPORTS):
        began["at"] = time.perf_counter()
        await asyncio.to_thread(client.report, task_id, message=f"{number}")
        await asyncio.sleep(INTERVAL)
    used = cpu() - before
    waits.sort()
    print(f"a report to all of them: {used / REPORTS * 1000:.0f} ms of processor time,", end=" ")
    print(f"there after p50 {waits[len(waits) // 2] * 1000:.0f} ms,", end=" ")
    print(f"p99 {waits[len(waits) * 99 // 100] * 1000:.0f} ms ({len(waits)} events)")
    leave.set()
    await asyncio.gather(*opened)


def cpu() -> float:
    """Seconds of processor time so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def pss() -> float:
    """KiB."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return float(text.partition("\nPss:")[2].split()[0])


def connections() -> int:
    """Sockets that are open."""
    links = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.exists()]
    return sum(link.startswith("socket:") for link in links)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
