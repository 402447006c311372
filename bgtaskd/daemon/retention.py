# SPDX-License-Identifier: LGPL-2.1-or-later
"""Forgets ended tasks whose days are over: rows, messages, output files. At start and once a day."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from bgtaskd.daemon.engine import Engine, now_usec
from bgtaskd.storage.interface import StorageError

log = logging.getLogger(__name__)

DAY_USEC: Final = 86_400_000_000
BATCH: Final = 500


async def run(engine: Engine) -> None:
    """For ever."""
    while True:
        try:
            removed = await clean(engine)
            if removed:
                log.info("Forgot %d tasks whose retention was over", removed)
        except StorageError as error:
            log.warning("Cannot forget old tasks: %s", error)
        await asyncio.sleep(86_400)


async def clean(engine: Engine) -> int:
    """Forget what is old enough; how many that were. Raises StorageError."""
    total = 0
    while True:
        config, now = engine.config, now_usec()
        success = now - config.backlog_days * DAY_USEC if config.backlog_days else None
        anything = now - config.all_backlog_days * DAY_USEC if config.all_backlog_days else None
        ids = list(engine.storage.ended_before(success, anything, BATCH))
        if not ids:
            return total
        removed = await engine.clean(ids)
        if not removed:
            return total
        engine.storage.vacuum()
        total += removed
