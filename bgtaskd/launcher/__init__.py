# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hand: root, small; forks the tasks."""
