# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who comes in: whoever has the token, by logging in with it or, for a reverse proxy, in each request. Pure.

The page may do what an administrator may, and any user of the machine can reach its port: so being there is not
enough. The token is made anew at each start and can be read by root alone.
"""

from __future__ import annotations

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Final

from bgtaskd.web.page import Request
from bgtaskd.web.references import InvalidReference, read_reference, reference

COOKIE: Final = "bgtaskd-web"
HOURS: Final = 12
ADMINISTRATOR: Final = "administrator"
NAME_MAX: Final = 100


class Door:
    """``token``: what lets in. ``user_header``: in which header the proxy says whom it let in, if it does."""

    def __init__(self, token: str, user_header: str | None = None) -> None:
        self.token = token
        self.key = secrets.token_bytes(32)
        self._user_header = None if user_header is None else user_header.lower()

    def is_token(self, given: str) -> bool:
        """Whether it is; how long that takes tells nothing."""
        return hmac.compare_digest(given.strip().encode(), self.token.encode())

    def who(self, request: Request) -> str | None:
        """Who sends it; None: nobody who may. A header is believed of the proxy only, which has the token."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given):
            named = request.headers.get(self._user_header or "", "")
            shown = "".join(one for one in named if one.isprintable())[:NAME_MAX]
            return shown or ADMINISTRATOR
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
            if cookie is not None:
                read_reference(cookie.value, self.key, ADMINISTRATOR)
                return ADMINISTRATOR
        except (CookieError, InvalidReference):
            pass
        return None

    def cookie(self) -> str:
        """What a browser keeps that has logged in."""
        seconds = HOURS * 3600
        value = reference(name=COOKIE, key=self.key, user=ADMINISTRATOR, expires=seconds)
        return f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}"
