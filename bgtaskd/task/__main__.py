# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program of a Python task. Run by its path, in whatever interpreter the caller had."""

import os
import sys

if __name__ == "__main__":
    # The directory of a script comes first in sys.path: ours must not hide anybody's modules; and at the
    # end it lends bgtaskd to an interpreter that has none.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [one for one in sys.path if os.path.abspath(one) != here]
    sys.path.append(os.path.dirname(os.path.dirname(here)))
    from bgtaskd.task.runner import main

    sys.exit(main())
