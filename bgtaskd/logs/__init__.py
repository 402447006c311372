# SPDX-License-Identifier: LGPL-2.1-or-later
"""A task's output: to the journal, and to a bounded file."""
