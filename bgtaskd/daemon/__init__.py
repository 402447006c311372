# SPDX-License-Identifier: LGPL-2.1-or-later
"""The brain: unprivileged; decides and remembers."""
