# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test houses: disposable Debian machines in which bgtaskd is tried as users will run it.

``roots``      builds Debian root filesystems and disk images, once, into a cache
``machine``    what can be done with any machine: run commands, copy files, install packages
``container``  a machine that boots in half a second (systemd-nspawn; no cgroup controllers)
``vm``         a machine with a kernel of its own (qemu): real limits, real reboots
"""
