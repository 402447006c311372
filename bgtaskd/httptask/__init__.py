# SPDX-License-Identifier: LGPL-2.1-or-later
"""The program of a task of kind http: makes one request, signed, and streams the response to its output."""
