"""Required packages: what is a requirement here, and what is lacking."""

from __future__ import annotations

import pytest

import dspool
from dspool import requirements

pytestmark = pytest.mark.unit

VERSIONS = {"pandas": "2.1.4", "numpy": None, "odd": "not-a-version", "early": "3.0rc1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pandas", None),
        ("pandas>=2,<3", None),
        ("early>=3.0rc1", None),
        ("odd", None),
        ("numpy; python_version < '3'", None),
        ("pandas>=2.2", "pandas>=2.2 is needed, and pandas 2.1.4 is installed"),
        ("numpy", "numpy is not installed"),
        ("odd>=1", "odd>=1 is needed, and odd not-a-version is installed"),
    ],
)
def test_what_is_lacking_is_said(text: str, said: str | None) -> None:
    assert requirements.lacking([text], VERSIONS) == ([] if said is None else [said])


def test_markers_are_held_against_the_interpreter_that_is_meant() -> None:
    text = "numpy; python_version < '3.12'"
    assert requirements.lacking([text], VERSIONS, {"python_version": "3.13"}) == []
    assert requirements.lacking([text], VERSIONS, {"python_version": "3.11"}) == [f"{text} is not installed"]


def test_what_is_installed_here_is_found() -> None:
    found = requirements.installed(["msgspec>=0.1", "no-such-distribution"])
    assert found["msgspec"]
    assert found["no-such-distribution"] is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("pandas>>2", "'pandas>>2' is no requirement, as 'pandas>=2' is"),
        (["pandas", ""], "'' is no requirement"),
        ("pandas[excel]>=2", "'pandas\\[excel\\]>=2' has extras"),
        ("pandas @ https://host/pandas.whl", "'pandas' has an address"),
        (5, "must be requirements, as in 'pandas>=2'; it is 5"),
        ([None], "must be requirements"),
    ],
)
def test_what_is_no_requirement_is_refused_with_the_options(value: object, said: str) -> None:
    with pytest.raises(dspool.OptionsError, match=said):
        dspool.PoolOptions(required_packages=value)  # type: ignore[arg-type]


def test_one_requirement_needs_no_list() -> None:
    assert dspool.PoolOptions(required_packages="pandas>=2").required_packages == ("pandas>=2",)  # type: ignore[arg-type]
