# SPDX-License-Identifier: LGPL-2.1-or-later
"""All the files below /etc/bgtaskd at once: what is wrong with them. Nothing is taken over here."""

from __future__ import annotations

from pathlib import Path

from bgtaskd.apps import load_apps
from bgtaskd.config import Config, ConfigError, ConfigErrors, load_config
from bgtaskd.schedules import load_schedules
from bgtaskd.workers import load_workers


def check(path: str, conf_d: str) -> tuple[Config | None, list[ConfigError]]:
    """The configuration, None where it has mistakes; and all there are, also beside conf_d."""
    beside = Path(conf_d).parent
    errors = [
        *load_schedules(str(beside / "schedules.d"))[1],
        *load_apps(str(beside / "apps.d"))[1],
        *load_workers(str(beside / "tasks.d"))[1],
    ]
    try:
        return load_config(path, conf_d), errors
    except ConfigErrors as wrong:
        return None, [*wrong.errors, *errors]
