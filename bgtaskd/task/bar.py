# SPDX-License-Identifier: LGPL-2.1-or-later
"""tqdm, which shows a loop's progress where it is printed, and reports it where a task runs."""

from __future__ import annotations

from typing import Any

from bgtaskd.errors import NotInTask
from bgtaskd.task.own import OwnStatus, current

try:
    import tqdm.std as _std
except ImportError:
    raise ImportError(
        "bgtaskd.tqdm needs tqdm, which is not installed (apt install python3-tqdm, or pip install tqdm)"
    ) from None


class tqdm(_std.tqdm):  # type: ignore[misc]  # noqa: N801 - the name that everybody knows
    """tqdm as it is; inside a task the outermost bar also reports: finished, total, and ``desc`` as message.

    Outside of a task it is tqdm and nothing else.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._status: OwnStatus | None = None
        super().__init__(*args, **kwargs)
        if getattr(self, "pos", 0) == 0 and not self.disable:
            try:
                self._status = current()
            except NotInTask:
                return
            self._report()

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Show, and report: tqdm calls it no more often than ten times a second."""
        self._report()
        return super().refresh(*args, **kwargs)

    def close(self) -> None:
        """The end: the last count is reported too."""
        self._report()
        self._status = None
        super().close()

    def _report(self) -> None:
        status = getattr(self, "_status", None)
        if status is not None:
            status.operations(None if self.total is None else int(self.total), int(self.n))
            if self.desc:
                status.update(message=self.desc.removesuffix(": "))
