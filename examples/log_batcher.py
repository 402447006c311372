# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named task: lines from everywhere, written once a minute. None is lost: it is done when it is written.

bgtaskctl call logbatcher '{"page": "/basket", "ms": 17}'
"""

import asyncio
import json
import os

import bgtaskd


class LogBatcher(bgtaskd.AsyncTask):
    name = "logbatcher"
    concurrency = 500
    loop_interval = float(os.environ.get("EVERY", "60"))

    def setup(self):
        """No lines yet."""
        self.lines, self.written = [], asyncio.Event()

    async def work(self, payload, context):
        """Take in a line; what a crash has caught in memory comes again, and is written at once."""
        self.lines.append(json.dumps({"uid": context.uid, **payload}) + "\n")
        written = self.written
        if len(self.lines) == self.concurrency or context.tries > 1:
            self.loop()
        await written.wait()

    def loop(self):
        """Write what there is."""
        if self.lines:
            with open(os.environ["LOG_FILE"], "a") as file:
                print(*self.lines, sep="", end="", file=file, flush=True)
                os.fsync(file.fileno())
            self.written.set()
            self.setup()
