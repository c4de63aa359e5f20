"""The keys that no text may hold: known values, looked for in what is said and masked there.

A worker masks what it tells of an exception; the manager masks what a worker writes to its output.

Rules:
    1. A value is masked whole. What sounds like a secret by its name is one: in settings, in the environment, in the
       query of an address; and so is who logs in there.
    2. Values shorter than MIN_SECRET_CHARS are placeholders.
    3. Bounded: of what came with single calls, the last MAX_PASSING are known. Each of many callers may have a key.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dspool.protocol.messages import LMSpec

MIN_SECRET_CHARS = 8
"""Shorter ones are placeholders ("x", "EMPTY"), and masking them would tear words apart."""

MAX_PASSING = 16_384
"""More than there are sessions by default."""

MASK = "***"
SECRET_FIELD = re.compile(r"key|token(?!s)|secret|passw|auth|credential|cookie|header", re.IGNORECASE)
"""Names of fields and settings under which no text belongs into a log or a definition. "max_tokens" is none, and
neither is "signature", which is a program's there."""
_MANY = 50
_MAX_DEPTH = 6
_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|credential|cookie|signature", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD)$", re.IGNORECASE)


class Secrets:
    """The values that no text may hold. Threads may add and mask at the same time."""

    def __init__(self) -> None:
        self._kept: set[str] = set()
        self._passing: OrderedDict[str, None] = OrderedDict()
        """The least recently added first."""
        self._ordered: tuple[str, ...] | None = ()
        """The longest first, since one may hold another; None: to be put in order."""
        self._beginnings: frozenset[str] = frozenset()
        self._lock = threading.RLock()

    @classmethod
    def of_environment(cls) -> Secrets:
        """With what the environment holds."""
        secrets = cls()
        secrets.add_environment()
        return secrets

    def add(self, *values: str, passing: bool = False) -> None:
        """Mask these from now on.

        Args:
            values: the secrets.
            passing: they came with a call, and may be forgotten for later ones.
        """
        known = {value for value in values if len(value) >= MIN_SECRET_CHARS}
        with self._lock:
            for value in known - self._kept:
                if value not in self._passing:
                    self._ordered = None
                if passing:
                    self._passing[value] = None
                    self._passing.move_to_end(value)
                else:
                    self._passing.pop(value, None)
                    self._kept.add(value)
            while len(self._passing) > MAX_PASSING:
                self._passing.popitem(last=False)

    def add_environment(self, environment: Mapping[str, str | None] = os.environ) -> None:
        """Mask what an environment's keys, tokens, secrets and passwords are, those in addresses too."""
        values = {name: value for name, value in environment.items() if value is not None}
        self.add(*(value for name, value in values.items() if _SECRET_VARIABLE.search(name)))
        self.add(*(secret for value in values.values() if "://" in value for secret in _secrets_in_url(value)))

    def add_lm(self, spec: LMSpec, *, passing: bool = False) -> None:
        """Mask an LM's keys."""
        self.add(*secrets_in(spec.kwargs), *spec.secrets, passing=passing)

    def add_settings(self, settings: Mapping[str, Any], *, passing: bool = False) -> None:
        """Mask the texts under those names that sound like a secret, at any depth, and those in addresses."""
        self.add(*secrets_in(settings), passing=passing)

    def mask(self, text: str) -> str:
        """The text with every secret replaced."""
        with self._lock:
            if self._ordered is None:
                self._ordered = tuple(sorted({*self._kept, *self._passing}, key=len, reverse=True))
                self._beginnings = frozenset(value[:MIN_SECRET_CHARS] for value in self._ordered)
            ordered, beginnings = self._ordered, self._beginnings
        values: Iterable[str] = ordered
        if len(ordered) > _MANY:  # one look at the text, in place of one for each of them
            parts = {text[at : at + MIN_SECRET_CHARS] for at in range(len(text) - MIN_SECRET_CHARS + 1)}
            if beginnings.isdisjoint(parts):
                return text
            values = (value for value in ordered if value[:MIN_SECRET_CHARS] in parts)
        for value in values:
            if value in text:
                text = text.replace(value, MASK)
        return text


def secrets_in(settings: Mapping[str, Any]) -> set[str]:
    """The texts under those names that sound like a secret, at any depth, and those in addresses."""
    return set(_secrets_in(settings, secret=False, depth=0))


def _secrets_in(value: Any, *, secret: bool, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:  # an LM object's attributes may go in circles
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets_in(item, secret=secret or bool(_SECRET_NAME.search(str(name))), depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_in(item, secret=secret, depth=depth + 1)
    elif isinstance(value, str):
        if secret:
            yield value
            yield from value.split()[1:]  # the key in "Bearer <key>"
        elif "://" in value:
            yield from _secrets_in_url(value)


def _secrets_in_url(url: str) -> Iterator[str]:
    """What must not be told of an address: who logs in, and what in its query sounds like a secret, as it is written
    there and as a client may write it elsewhere."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return
    login = parts.netloc.rpartition("@")[0]
    if login:
        user, _, password = login.partition(":")
        plain = urllib.parse.unquote(login)
        yield from (login, plain, base64.b64encode(plain.encode()).decode())
        yield from (password or user, urllib.parse.unquote(password or user))
    for item in parts.query.split("&"):
        name, _, value = item.partition("=")
        if _SECRET_NAME.search(name):
            yield from (value, urllib.parse.unquote_plus(value))
