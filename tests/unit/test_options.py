"""Options: what is refused, and what the refusal says."""

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
