# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named task: what is kept for a while, shared by all processes and languages on the machine.

bgtaskctl call cache '{"set": "prices", "value": [1, 2], "seconds": 60}'
bgtaskctl call cache '{"get": "prices"}'
"""

import time

import bgtaskd


class MemoryCache(bgtaskd.SyncTask):
    """Answers null for what is not there, or too old."""

    name = "cache"
    loop_interval = 5.0

    def setup(self):
        """It begins empty."""
        self.kept = {}

    def work(self, payload, context):
        """One of set, get and delete."""
        match payload:
            case {"set": key, "value": value, **more}:
                self.kept[key] = (time.monotonic() + more.get("seconds", 3600), value)
                return True
            case {"get": key}:
                until, value = self.kept.get(key, (0, None))
                return value if until > time.monotonic() else None
            case {"delete": key}:
                return self.kept.pop(key, None) is not None
        raise ValueError("set, get or delete what?")

    def loop(self):
        """Forget what is too old."""
        self.kept = {key: one for key, one in self.kept.items() if one[0] > time.monotonic()}
