# SPDX-License-Identifier: LGPL-2.1-or-later
"""The administrator's page: bgtaskd-web.service. Nothing is on it that bgtaskctl cannot do."""
