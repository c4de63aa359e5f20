"""What the value of an option may be; in an OptionsError: the option, what is legal, and what was given.

check_...() only refuse; module_names(), requirement_texts() and environment() give the value as the options keep it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping

from dspool.errors import OptionsError

MAX_SECONDS = 1e9
"""The longest time that can be asked for, about 31 years: any longer is None, "no limit"."""
MAX_WHOLE = 2**63 - 1
"""The largest whole number that can be asked for: it travels to workers, and is multiplied by fractions."""
_ELSEWHERE = {"num_threads": "workers", "model": "lm"}
"""What DSPy calls them."""
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Range:
    """A number's legal range, both ends included, and whether None ("no limit") is legal."""

    def __init__(self, low: float, high: float = math.inf, *, none: bool = False, whole: bool = False) -> None:
        self.low, self.high, self.none, self.whole = low, high, none, whole

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low, high = (f"{end:,}" if self.whole else f"{end:g}" for end in (self.low, self.high))
        upto = "or more" if self.high == math.inf else f"to {high}"
        return f"{kind}, {low} {upto}{', or None' if self.none else ''}"

    def admits(self, value: object) -> bool:
        """Whether `value` lies in the range. Booleans are not numbers, NaN lies nowhere."""
        if value is None:
            return self.none
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= min(self.high, MAX_WHOLE if self.whole else MAX_SECONDS)


def check_range(option: str, value: object, legal: Range) -> None:
    """Refuse a number out of its range."""
    if not legal.admits(value):
        too_long = isinstance(value, int) and abs(value) > MAX_WHOLE
        raise OptionsError(f"{option} must be {legal}; it is {'beyond 64 bits' if too_long else repr(value)}")


def check_one_of(option: str, value: object, legal: tuple[str, ...]) -> None:
    """Refuse what is none of these."""
    if value not in legal:
        raise OptionsError(f"{option} must be one of {', '.join(legal)}; it is {value!r}")


def seconds(option: str, value: object, *, none: bool = False) -> float:
    """A time that a call was given, as a float; infinity for None.

    Raises:
        OptionsError: it is no number of seconds, or negative.
    """
    check_range(option, value, Range(0, MAX_SECONDS, none=none))
    return math.inf if value is None else float(value)  # type: ignore[arg-type]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about `word`: "; did you mean 'workers'?" where a known word is like it, else "."."""
    known = list(known)
    likely = difflib.get_close_matches(word, known, n=1)
    if _ELSEWHERE.get(word) in known:
        likely = [_ELSEWHERE[word]]
    return f"; did you mean {likely[0]!r}?" if likely else "."


def check_name(option: str, value: object) -> None:
    """Refuse what is no name of a pool or a group."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise OptionsError(f"{option} must be 1 to 64 letters, digits or _ . : -, not {value!r}")


def check_namespace(option: str, value: object) -> None:
    """Refuse what is no namespace of a cache, nor None."""
    if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise OptionsError(f"{option} must be 1 to 64 letters, digits or _ . : -, or None; it is {value!r:.80}")


def module_names(option: str, value: object) -> tuple[str, ...]:
    """Names of modules; one may come by itself."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise OptionsError(f"{option} must be module names; it is {value!r}")
    return tuple(names)


def requirement_texts(value: object) -> tuple[str, ...]:
    """`required_packages` as texts that can be read."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise OptionsError(f"required_packages must be requirements, as in 'pandas>=2'; it is {value!r}")
    if texts:  # else nobody pays for the import
        from dspool import requirements

        for text in texts:
            requirements.parse(text)
    return tuple(texts)


def environment(value: object) -> dict[str, str | None]:
    """Variables of an environment."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionsError(
            f"env must be a mapping of variable names to strings or None; it is a {type(value).__name__}"
        )
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise OptionsError(f"env has a bad variable name: {name!r}")
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise OptionsError(f"env[{name!r}] must be a string or None, not a {type(text).__name__}")
    return dict(value)
