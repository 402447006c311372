# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same two jobs for everybody: one that answers with its payload, one that tells when it began.

Loaded by each peer's own worker, which finds here the app object it wants.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

WHO = os.environ.get("BENCH_PEER", "")
REDIS = "redis://localhost/0"
DONE = "/srv/bench/done"
"""Each drained payload is a byte in this file: a counter that any number of processes can write."""


def answer(payload: Any) -> Any:
    """A job whose caller waits."""
    return payload


def drain(payload: Any) -> None:
    """A job whose caller goes on."""
    fd = os.open(DONE, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b".")
    os.close(fd)


def began(asked: float) -> float:
    """Seconds since it was asked for."""
    return time.time() - asked


def tell_began(asked: float) -> None:
    """The same, into the file: RQ and Celery need no result for it."""
    fd = os.open(DONE, os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{time.time() - asked}\n".encode())
    os.close(fd)


if WHO == "celery":
    import celery

    app = celery.Celery("peer_jobs", broker=REDIS, backend=REDIS)
    app.conf.update(worker_prefetch_multiplier=64, task_acks_late=False)
    celery_answer = app.task(answer)
    celery_drain = app.task(ignore_result=True)(drain)
    celery_began = app.task(ignore_result=True)(tell_began)

if WHO == "huey":
    from huey import RedisHuey

    huey = RedisHuey("bench")
    huey_answer = huey.task()(answer)
    huey_drain = huey.task()(drain)

if WHO == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker = RedisBroker(url=REDIS)
    broker.add_middleware(Results(backend=RedisBackend(url=REDIS)))
    dramatiq.set_broker(broker)
    dramatiq_answer = dramatiq.actor(store_results=True)(answer)
    dramatiq_drain = dramatiq.actor(drain)

if WHO == "gearman":
    import socket

    import gear

    connect = gear.Connection.connect

    def connect_at_once(self: Any) -> None:
        """With TCP_NODELAY, which gear does not set: a call would take 44 ms."""
        connect(self)
        self.conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    gear.Connection.connect = connect_at_once

    if __name__ == "__main__":
        worker = gear.Worker("bench")
        worker.addServer("localhost")
        worker.waitForServer()
        for name in ("answer", "drain"):
            worker.registerFunction(name)
        while True:
            job = worker.getJob()
            payload = json.loads(job.arguments)
            if job.name in (b"drain", "drain"):
                drain(payload)
                job.sendWorkComplete()
            else:
                job.sendWorkComplete(json.dumps(answer(payload)).encode())

if WHO == "bgtaskd":
    import bgtaskd

    class Answer(bgtaskd.SyncTask):
        def work(self, payload: Any, context: bgtaskd.Context) -> Any:
            return answer(payload)

    class Drain(bgtaskd.AsyncTask):
        def work(self, payload: Any, context: bgtaskd.Context) -> None:
            drain(payload)


try:
    import bgtaskd as _ours

    @_ours.background
    def cold(status: Any, asked: float) -> None:
        """A task as it is."""
        tell_began(asked)

    @_ours.background(preload=True)
    def warm(status: Any, asked: float) -> None:
        """A task that is forked from a process with its modules loaded."""
        tell_began(asked)

except ImportError:
    pass

# What an app has loaded before its first task can run.
import asyncio  # noqa: F401
import decimal  # noqa: F401
import email.mime.multipart  # noqa: F401
import http.client  # noqa: F401
import logging.handlers  # noqa: F401
import sqlite3  # noqa: F401
import xml.etree.ElementTree  # noqa: F401
