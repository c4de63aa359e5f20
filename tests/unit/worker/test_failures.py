"""Exceptions as plain data."""

from __future__ import annotations

from typing import Any

import pytest

from dspool.protocol.codec import MSGPACK
from dspool.protocol.messages import LMSpec, refused
from dspool.worker.failures import MAX_TRACEBACK_BYTES, Secrets, clean, describe

pytestmark = pytest.mark.unit


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_type_bases_message_and_traceback() -> None:
    info = describe(raised(KeyError("k")), "program_error", Secrets())
    assert (info.code, info.type, info.message) == ("program_error", "builtins.KeyError", "'k'")
    assert info.mro == [f"builtins.{name}" for name in ("KeyError", "LookupError", "Exception", "BaseException")]
    assert info.traceback.startswith("Traceback (most recent call last):")
    assert info.traceback.endswith("KeyError: 'k'\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Hostile(), "<a Hostile whose str() raised RuntimeError>"),
        (ValueError(), "builtins.ValueError"),
        (SystemExit(3), "the program called exit(3); a worker outlives that"),
    ],
)
def test_an_exception_without_a_text_of_its_own(error: BaseException, message: str) -> None:
    assert describe(raised(error), "program_error", Secrets()).message == message


def test_texts_that_cannot_be_encoded_are_escaped() -> None:
    info = describe(raised(ValueError("\udcff\0")), "program_error", Secrets())
    assert info.message == "\\udcff\0"
    MSGPACK.encode(refused(1, info))


def test_a_deep_recursion_has_a_short_traceback() -> None:
    def deeper(number: int) -> Any:
        return deeper(number + 1)

    with pytest.raises(RecursionError) as caught:
        deeper(0)
    info = describe(caught.value, "program_error", Secrets())
    assert len(info.traceback) < 4000


def test_a_long_text_loses_its_middle() -> None:
    text = clean("<" + "x" * 2 * MAX_TRACEBACK_BYTES + ">", MAX_TRACEBACK_BYTES, Secrets())
    assert text.startswith("<x")
    assert text.endswith("x>")
    assert f"[... {MAX_TRACEBACK_BYTES + 2:,} bytes left out ...]" in text


def test_a_cut_between_the_bytes_of_a_character_drops_it() -> None:
    assert clean("\N{SNOWMAN}" * 100, 50, Secrets()).strip("\N{SNOWMAN}") == "\n[... 250 bytes left out ...]\n"


def test_secrets_are_masked_whole_and_before_anything_is_cut() -> None:
    secrets = Secrets()
    secrets.add_lm(
        LMSpec(
            "d",
            "openai/x",
            {
                "api_key": "sk-0123456789",
                "api_base": "https://example.org",
                "max_tokens": 1000,
                "extra_headers": {"Authorization": "Bearer sk-another-one", "X-Trace": "not-secret-at-all"},
                "aws_credentials": ["first-secret", {"of": "second-secret"}],
                "password": "short",
            },
        )
    )
    text = "sk-0123456789 sk-another-one first-secret second-secret https://example.org 1000 short not-secret-at-all"
    assert secrets.mask(text) == "*** *** *** *** https://example.org 1000 short not-secret-at-all"
    assert "sk-01234" not in clean("y" * 40 + "sk-0123456789" + "y" * 150, 160, secrets)


def test_a_secret_within_a_secret_leaves_nothing() -> None:
    secrets = Secrets()
    secrets.add("secret-one", "secret-one-and-more")
    assert secrets.mask("secret-one-and-more, secret-one") == "***, ***"


def test_the_environments_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-canary")
    monkeypatch.setenv("SOME_KEYBOARD", "qwerty-qwerty")
    secrets = Secrets()
    secrets.add_environment()
    assert secrets.mask("canary-canary qwerty-qwerty") == "*** qwerty-qwerty"
