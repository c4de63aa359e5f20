"""Options: what is refused, and what the refusal says."""

from pathlib import Path
from typing import Any

import pytest

import dspool
from dspool.options import PoolOptions

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("wrokers", "unknown option 'wrokers'; did you mean 'workers'? The options are adapter, "),
        ("timeout", "unknown option 'timeout'; did you mean 'timeout_s'? The options are adapter, "),
        ("max_request", "unknown option 'max_request'; did you mean 'max_requests'? The options are adapter, "),
        ("colour", "unknown option 'colour'. The options are adapter, "),
    ],
)
def test_a_misspelt_option_is_refused_with_the_one_it_resembles(option: str, said: str) -> None:
    misspelt: dict[str, Any] = {option: 4}
    for kind in (dspool.Pool, dspool.AsyncPool):
        with pytest.raises(dspool.OptionsError) as caught:
            kind(PoolOptions(), **misspelt)
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize("value", [2**63, 10**400, 10**5000], ids=["64 bits", "no float", "no text"])
@pytest.mark.parametrize(
    "option", ["max_requests", "max_rss_bytes", "max_rss_growth_bytes", "max_programs", "max_retries"]
)
def test_a_number_that_no_message_carries_and_no_float_holds_is_refused(option: str, value: int) -> None:
    with pytest.raises(dspool.OptionsError, match=f"{option} must be a whole number, .*; it is beyond 64 bits"):
        PoolOptions(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [5, None, [[]], [1], b"gpu"])
def test_labels_are_texts(labels: Any) -> None:
    with pytest.raises(dspool.OptionsError, match=r"WorkerGroup\.labels must be a label or labels"):
        dspool.WorkerGroup(name="a", workers=1, labels=labels)


@pytest.mark.parametrize("cache", [None, 1, "", b"folder", "a\0b"])
def test_a_cache_is_on_off_or_a_folder(cache: Any) -> None:
    with pytest.raises(dspool.OptionsError, match="cache must be True, False or a folder's path; it is "):
        PoolOptions(cache=cache)


def test_a_caches_folder_doesnt_move_with_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert PoolOptions(cache=Path("answers")).cache == str(tmp_path / "answers")
    assert PoolOptions(cache="~/answers").cache == str(tmp_path / "home" / "answers")


@pytest.mark.parametrize("namespace", ["", "a/b", "..\n", "x" * 65, 5, True])
def test_a_namespace_is_a_name(namespace: Any) -> None:
    with pytest.raises(dspool.OptionsError, match=r"^cache_namespace must be 1 to 64 letters"):
        PoolOptions(cache_namespace=namespace)
    with pytest.raises(dspool.OptionsError, match=r"^WorkerGroup\('a'\)\.cache_namespace must be 1 to 64 letters"):
        dspool.WorkerGroup(name="a", workers=1, cache_namespace=namespace)
