# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads a Varlink interface file, and checks parameters against it. Pure.

Grammar: https://varlink.org/Interface-Definition. Only what our own interface uses has a type check.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

TOKEN: Final = re.compile(
    r"\s*(?:#[^\n]*)?(->|\?|\[\]|\[string\]|[(),:]|[A-Za-z][A-Za-z0-9_.\-]*)?", re.ASCII
)


class InvalidParameter(Exception):
    """A parameter that the method does not know, lacks, or has with another type. ``parameter``: its path."""

    def __init__(self, parameter: str, reason: str) -> None:
        self.parameter = parameter
        self.reason = reason
        super().__init__(f"{parameter}: {reason}")


@dataclass(frozen=True)
class Type:
    """maybe: ?T; array: []T; dict: [string]T; enum; struct; or a name: bool int float string object Xxx."""

    kind: str
    of: Type | None = None
    name: str = ""
    fields: Mapping[str, Type] = field(default_factory=dict)
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interface:
    """A parsed interface."""

    name: str
    text: str
    types: Mapping[str, Type]
    methods: Mapping[str, tuple[Type, Type]]
    errors: Mapping[str, Type]

    def check(self, method: str, parameters: Mapping[str, Any]) -> None:
        """Check a call's parameters. Raises InvalidParameter."""
        self._check(self.methods[method][0], parameters, "")

    def _check(self, kind: Type, value: Any, path: str) -> None:
        match kind.kind:
            case "maybe":
                assert kind.of is not None
                if value is not None:
                    self._check(kind.of, value, path)
            case "array":
                assert kind.of is not None
                if not isinstance(value, list):
                    raise InvalidParameter(path, "must be an array")
                for number, one in enumerate(value):
                    self._check(kind.of, one, f"{path}[{number}]")
            case "dict":
                assert kind.of is not None
                if not isinstance(value, dict):
                    raise InvalidParameter(path, "must be an object")
                for key, one in value.items():
                    self._check(kind.of, one, f"{path}.{key[:64]}")
            case "enum":
                if value not in kind.values:
                    raise InvalidParameter(path, f"must be one of {', '.join(kind.values)}")
            case "struct":
                self._check_struct(kind, value, path)
            case _:
                self._check_name(kind.name, value, path)

    def _check_struct(self, kind: Type, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise InvalidParameter(path, "must be an object")
        prefix = f"{path}." if path else ""
        for key in value:
            if key not in kind.fields:
                raise InvalidParameter(
                    f"{prefix}{key[:64]}", f"unknown; known are {', '.join(kind.fields)}"
                )
        for key, one in kind.fields.items():
            if key not in value and one.kind != "maybe":
                raise InvalidParameter(prefix + key, "missing")
            self._check(one, value.get(key), prefix + key)

    def _check_name(self, name: str, value: Any, path: str) -> None:
        right = {
            "bool": isinstance(value, bool),
            "int": type(value) is int,
            "float": type(value) in (int, float),
            "string": isinstance(value, str),
            "object": True,
        }.get(name)
        if right is None:
            self._check(self.types[name], value, path)
        elif not right:
            raise InvalidParameter(path, f"must be of type {name}")


def parse(text: str) -> Interface:
    """Parse an interface file. Raises ValueError."""
    return _Parser(text).interface()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0

    def interface(self) -> Interface:
        self._expect("interface")
        name = self._next()
        types: dict[str, Type] = {}
        methods: dict[str, tuple[Type, Type]] = {}
        errors: dict[str, Type] = {}
        while self._at < len(self._tokens):
            word, member = self._next(), self._next()
            if word == "type":
                types[member] = self._struct()
            elif word == "method":
                call = self._struct()
                self._expect("->")
                methods[member] = (call, self._struct())
            elif word == "error":
                errors[member] = self._struct()
            else:
                raise ValueError(f"type, method or error expected, not {word!r}")
        return Interface(name, self._text, types, methods, errors)

    def _struct(self) -> Type:
        self._expect("(")
        fields: dict[str, Type] = {}
        names: list[str] = []
        while self._peek() != ")":
            name = self._next()
            names.append(name)
            if self._peek() == ":":
                self._next()
                fields[name] = self._type()
            if self._peek() == ",":
                self._next()
        self._expect(")")
        return (
            Type("enum", values=tuple(names))
            if names and not fields
            else Type("struct", fields=fields)
        )

    def _type(self) -> Type:
        match self._peek():
            case "?":
                self._next()
                return Type("maybe", self._type())
            case "[]":
                self._next()
                return Type("array", self._type())
            case "[string]":
                self._next()
                return Type("dict", self._type())
            case "(":
                return self._struct()
            case _:
                return Type("name", name=self._next())

    def _peek(self) -> str:
        if self._at >= len(self._tokens):
            raise ValueError("the interface ends too early")
        return self._tokens[self._at]

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise ValueError(f"{token!r} expected")


def _tokens(text: str) -> list[str]:
    out, position = [], 0
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None or found.end() == position:
            raise ValueError(f"cannot read {text[position : position + 20]!r}")
        if found[1]:
            out.append(found[1])
        position = found.end()
    return out
