# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run with -m, or (where bgtaskd is not installed) by its path; always by the daemon."""

import os
import sys

if __name__ == "__main__":
    if not __package__:
        sys.path.append(
            os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        )
    # httpx's command line, with rich and click: half of what its import would cost, and not wanted here.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    from bgtaskd.httptask.program import main

    sys.exit(main())
