# SPDX-License-Identifier: LGPL-2.1-or-later
"""/etc/bgtaskd/apps.d/*.yaml: the web apps whose routes tasks may request. See bgtaskd-apps(5).

A file with a mistake is told of, with file, line, key and reason, and left out; the others count.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from bgtaskd.config import ConfigError
from bgtaskd.definitions import DefinitionReader, load_definitions
from bgtaskd.properties import parse_timespan

DIRECTORY: Final = "/etc/bgtaskd/apps.d"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
KEY_MAX: Final = 4096
SOCKET_MAX: Final = 107
KEYS: Final = (
    *("base_url", "unix_socket", "key", "key_file", "user", "users", "groups"),
    *("ca_file", "verify_tls", "timeout", "page"),
)


@dataclass(frozen=True)
class App:
    """One file's app; its name is the file's."""

    name: str
    base_url: str
    """Without a slash at its end."""
    key: bytes = field(repr=False)
    user: str
    """As whom the app runs."""
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    unix_socket: str | None = None
    ca_file: str | None = None
    verify_tls: bool = True
    timeout_usec: int | None = None
    page: Mapping[str, Any] = field(default_factory=dict)
    """Of the web page, which checks it itself."""


def load_apps(directory: str = DIRECTORY) -> tuple[dict[str, App], list[ConfigError]]:
    """Every file that has no mistake, by name, and the mistakes of the others."""
    found, errors = load_definitions(directory, _Reader)
    return {one.name: one for one in found}, errors


class _Reader(DefinitionReader[App]):
    def read(self) -> App:
        name, data = self._name, self._data
        if not NAME.fullmatch(name):
            self._wrong("", "the file's name: letters, digits, _ and - only, 64 at most")
        for key in data:
            if key not in KEYS:
                near = difflib.get_close_matches(str(key), KEYS, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(KEYS)}"
                self._wrong(str(key), f"no such key; {hint}")
        return App(
            name,
            self._base_url(data),
            self._key(data),
            self._text(data, "user", needed=True),
            self._names(data, "users"),
            self._names(data, "groups"),
            self._path_of(data, "unix_socket", SOCKET_MAX),
            self._path_of(data, "ca_file", 4096),
            self._bool(data, "verify_tls", True),
            self._span(data, "timeout"),
            self._page(data),
        )

    def _text(self, data: Mapping[str, Any], key: str, needed: bool = False) -> str:
        value = data.get(key)
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or not value:
            self._wrong(key, "must be a text" if key in data else "is missing")
            return ""
        return value

    def _base_url(self, data: Mapping[str, Any]) -> str:
        text = self._text(data, "base_url", needed=True)
        if not text:
            return ""
        try:
            url = urlsplit(text)
            good = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError as error:
            self._wrong("base_url", f"is no URL: {error}")
            return ""
        if (
            not good
            or not text.startswith(("http://", "https://"))
            or not text.isascii()
            or not text.isprintable()
            or " " in text
        ):
            self._wrong("base_url", "must be http://HOST[:PORT][/PATH], or https://…")
        elif "@" in url.netloc or url.query or url.fragment or "?" in text or "#" in text:
            self._wrong("base_url", "must have no user, query or fragment")
        elif any(part in (".", "..") for part in url.path.split("/")) or "%" in url.path:
            self._wrong("base_url", "its path must be plain: no . or .. and no %")
        return text.rstrip("/")

    def _key(self, data: Mapping[str, Any]) -> bytes:
        from bgtaskd.signing import KEY_MIN  # it brings OpenSSL: 3 MiB, where there are apps

        if ("key" in data) == ("key_file" in data):
            self._wrong("key", "must be given: either here or as key_file" if "key" not in data
                        else "either key or key_file, not both")  # fmt: skip
            return b""
        if "key" in data:
            key, place = self._text(data, "key", needed=True).encode("utf-8", "replace"), "key"
            self._refuse_readable(self._path, "key")
        else:
            key, place = self._read_key(self._path_of(data, "key_file", 4096)), "key_file"
        if not self.errors and not KEY_MIN <= len(key) <= KEY_MAX:
            self._wrong(place, f"a key has {KEY_MIN} bytes at least, {KEY_MAX} at most:"
                        " openssl rand -hex 32")  # fmt: skip
        return key

    def _read_key(self, path: str | None) -> bytes:
        if path is None:
            return b""
        self._refuse_readable(path, "key_file")
        try:
            with open(path, "rb") as file:
                return file.read(KEY_MAX + 2).rstrip(b"\r\n")
        except OSError as error:
            self._wrong("key_file", f"cannot read {path}: {error.strerror}")
        return b""

    def _refuse_readable(self, path: str, key: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return  # whoever reads it says why not
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            self._wrong(key, f"{path} must be closed to others: chmod o= {path}")

    def _names(self, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            self._wrong(key, "must be a list of names")
            return ()
        return tuple(value)

    def _path_of(self, data: Mapping[str, Any], key: str, longest: int) -> str | None:
        if key not in data:
            return None
        value = data[key]
        if (
            not isinstance(value, str)
            or not value.startswith("/")
            or "\0" in value
            or len(value.encode("utf-8", "replace")) > longest
        ):
            self._wrong(key, f"must be an absolute path of at most {longest} bytes")
            return None
        return value

    def _bool(self, data: Mapping[str, Any], key: str, default: bool) -> bool:
        value = data.get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, "must be true or false")
            return default
        return value

    def _span(self, data: Mapping[str, Any], key: str) -> int | None:
        if key not in data:
            return None
        try:
            span = parse_timespan(str(data[key]))
        except ValueError:
            span = 0
        if not 0 < span <= 1 << 50:
            self._wrong(key, "must be a time span, such as 5min")
        return span

    def _page(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        page = data.get("page")
        if page is not None and not isinstance(page, dict):
            self._wrong("page", "must be a mapping")
            return {}
        return page or {}
