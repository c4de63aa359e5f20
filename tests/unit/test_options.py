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
        ("num_threads", "unknown option 'num_threads'; did you mean 'workers'? The options are adapter, "),
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


def test_limits_of_lms_are_structs_or_dicts_of_their_arguments() -> None:
    limit = dspool.LMLimit(requests_per_minute=500, tokens_per_minute=200_000, burst_s=6.0)
    options = PoolOptions(
        lm_limits={"openai/a": {"requests_per_minute": 500, "tokens_per_minute": 200_000}, "*": limit}
    )
    assert options.lm_limits == {"openai/a": limit, "*": limit}
    assert PoolOptions().lm_limits == {}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (None, "lm_limits must be a mapping of models to LMLimits; it is a NoneType"),
        ({5: {}}, "lm_limits must name models as their LMs do, or '*' for any; one name is 5"),
        ({"": {}}, "one name is ''"),
        ({"openai/*": {}}, "lm_limits knows no patterns but '*', each model that isn't named; not 'openai/*'"),
        ({"m": 500}, "lm_limits['m'] must be an LMLimit or a dict of its arguments; it is 500"),
        ({"m": {}}, "lm_limits['m'] must have requests_per_minute, tokens_per_minute or both; it limits nothing"),
        ({"m": {"rpm": 5}}, "lm_limits['m'] has no 'rpm'. There are requests_per_minute, tokens_per_minute, burst_s"),
        ({"m": {"request_per_minute": 5}}, "has no 'request_per_minute'; did you mean 'requests_per_minute'?"),
        ({"m": {"requests_per_minute": 0}}, "lm_limits['m'].requests_per_minute must be a number, 0.001 to 1e+09, or "),
        ({"m": {"tokens_per_minute": "many"}}, "lm_limits['m'].tokens_per_minute must be a number, 0.001 to 1e+09"),
        ({"m": {"tokens_per_minute": 5, "burst_s": 61}}, "lm_limits['m'].burst_s must be a number, 0 to 60; it is 61"),
        ({"m": {"tokens_per_minute": 5, "burst_s": None}}, "lm_limits['m'].burst_s must be a number, 0 to 60; it is N"),
        ({str(number): {} for number in range(129)}, "lm_limits may name 128 models, not 129; '*' is any other one"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: Any, said: str) -> None:
    with pytest.raises(dspool.OptionsError) as caught:
        PoolOptions(lm_limits=limits)
    assert said in str(caught.value)


def test_a_limit_alone_names_itself() -> None:
    with pytest.raises(dspool.OptionsError, match=r"^LMLimit\.burst_s must be a number, 0 to 60; it is -1"):
        dspool.LMLimit(requests_per_minute=5, burst_s=-1)
