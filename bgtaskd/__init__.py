# SPDX-License-Identifier: LGPL-2.1-or-later
"""Background tasks for web apps, each in a systemd scope of its own."""

__version__ = "0.1.0"
