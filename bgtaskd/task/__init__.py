# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks written in Python: what starts them, and what runs inside of them. Standard library only."""
