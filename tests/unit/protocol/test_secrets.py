"""The secrets that a process knows of: those of its callers come and go, its own stay."""

from __future__ import annotations

import pytest

from dspool.options import PoolOptions
from dspool.pool.lm_keys import MAX_SEEN, LMKeys
from dspool.pool.lm_specs import lm_spec
from dspool.protocol import secrets as module
from dspool.protocol.secrets import MASK, Secrets

pytestmark = pytest.mark.unit


def key(number: int) -> str:
    """A caller's."""
    return f"sk-of-caller-{number:06}"


def test_what_calls_brought_makes_room_and_what_is_the_pools_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PASSING", 3)
    secrets = Secrets()
    secrets.add("of-the-environment")
    for number in (0, 1, 2, 0, 3):
        secrets.add(key(number), passing=True)
    assert secrets.mask(f"of-the-environment {key(0)} {key(2)} {key(3)}") == " ".join([MASK] * 4)
    secrets.add(key(2))
    for number in range(4, 8):
        secrets.add(key(number), key(2), passing=True)
    assert secrets.mask(f"{key(2)} {key(7)}") == f"{MASK} {MASK}"


@pytest.mark.parametrize("others", [0, 1, 200])
def test_however_many_there_are_each_is_masked_whole(others: int) -> None:
    secrets = Secrets()
    secrets.add(*map(key, range(others)), "a-password", "a-password-and-more", "short", "\udcff" * 8)
    for text in ("a-password", "<a-password>", "xa-password-and-more", "a-passwor a-password"):
        assert secrets.mask(text).count(MASK) == 1
        assert "word-" not in secrets.mask(text)
    assert secrets.mask("\udcff" * 9) == MASK + "\udcff"
    assert secrets.mask("short a-passwor") == "short a-passwor"
    assert secrets.mask("") == ""


def test_keys_are_masked_also_where_there_are_more_lms_than_are_remembered() -> None:
    secrets = Secrets()
    keys = LMKeys(PoolOptions(workers=1), lambda event, fields: None, secrets)
    for number in range(MAX_SEEN + 2):
        keys.look(lm_spec({"model": "openai/m", "api_key": key(number)}))
    assert len(keys.seen) == MAX_SEEN
    assert secrets.mask(f"{key(0)} {key(MAX_SEEN + 1)}") == f"{MASK} {MASK}"
