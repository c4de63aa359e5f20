"""The keys that no text may hold: known values, looked for in what is said and masked there.

A worker masks what it tells of an exception; the manager masks what a worker writes to its output.

Rules:
    1. A value is masked whole. What sounds like a secret by its name is one: in settings, in the environment, in the
       query of an address; and so is who logs in there.
    2. Values shorter than MIN_SECRET_CHARS are placeholders.
"""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from dspool.protocol.messages import LMSpec

MIN_SECRET_CHARS = 8
"""Shorter ones are placeholders ("x", "EMPTY"), and masking them would tear words apart."""

MASK = "***"
SECRET_FIELD = re.compile(r"key|token(?!s)|secret|passw|auth|credential|cookie|header", re.IGNORECASE)
"""Names of fields and settings under which no text belongs into a log or a definition. "max_tokens" is none, and
neither is "signature", which is a program's there."""
_MAX_DEPTH = 6
_SECRET_NAME = re.compile(r"key|token|secret|passw|auth|credential|cookie|signature", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"(_KEY|_TOKEN|_SECRET|PASSWORD)$", re.IGNORECASE)


class Secrets:
    """The values that no text may hold. Threads may add and mask at the same time."""

    def __init__(self) -> None:
        self._values: tuple[str, ...] = ()

    @classmethod
    def of_environment(cls) -> Secrets:
        """With what the environment holds."""
        secrets = cls()
        secrets.add_environment()
        return secrets

    def add(self, *values: str) -> None:
        """Mask these from now on. The longest are masked first, since one may hold another."""
        known = {value for value in values if len(value) >= MIN_SECRET_CHARS}
        if not known.issubset(self._values):
            self._values = tuple(sorted({*self._values, *known}, key=len, reverse=True))

    def add_environment(self, environment: Mapping[str, str | None] = os.environ) -> None:
        """Mask what an environment's keys, tokens, secrets and passwords are, those in addresses too."""
        values = {name: value for name, value in environment.items() if value is not None}
        self.add(*(value for name, value in values.items() if _SECRET_VARIABLE.search(name)))
        self.add(*(secret for value in values.values() if "://" in value for secret in _secrets_in_url(value)))

    def add_lm(self, spec: LMSpec) -> None:
        """Mask an LM's keys."""
        self.add_settings(spec.kwargs)
        self.add(*spec.secrets)

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Mask the texts under those names that sound like a secret, at any depth, and those in addresses."""
        self.add(*secrets_in(settings))

    def mask(self, text: str) -> str:
        """The text with every secret replaced."""
        for value in self._values:
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
