"""What is promised, against what was measured. A goal that nothing was measured for is neither met nor missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Goal:
    """One promise.

    Attributes:
        text: what is compared with what, in words.
        limit: the worst value that still meets it.
        measured: the value, or None.
        at_least: whether more is better.
        unit: of limit and measured; "x" for a quotient.
        against: whom or what it was measured against, where that came out of the run.
    """

    text: str
    limit: float
    measured: float | None
    at_least: bool = False
    unit: str = "x"
    against: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether it holds. A value at the limit meets it."""
        if self.measured is None or self.measured != self.measured:
            return "not measured"
        holds = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if holds else "missed"

    def row(self) -> dict[str, Any]:
        """The goal as a row of a table and of the JSON file."""
        return {
            "goal": self.text,
            "wanted": f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}",
            "limit": self.limit,
            "measured": self.measured,
            "unit": self.unit,
            "against": self.against,
            "verdict": self.verdict,
        }


def best(rows: list[dict[str, Any]], key: str, *, most: bool = False, **where: Any) -> dict[str, Any] | None:
    """The row with the lowest (or highest) value under `key`, of those that have all of `where`, if there are any."""
    found = [row for row in pick(rows, **where) if row.get(key) is not None]
    if not found:
        return None
    return (max if most else min)(found, key=lambda row: row[key])


def pick(rows: list[dict[str, Any]], **where: Any) -> list[dict[str, Any]]:
    """The rows that have all of `where`."""
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def figure(row: dict[str, Any] | None, key: str) -> float | None:
    """row[key], or None where there is no row or no value."""
    return None if row is None or row.get(key) is None else float(row[key])


def quotient(one: dict[str, Any] | None, other: dict[str, Any] | None, key: str) -> float | None:
    """one[key] / other[key], or None where a row is missing or there is nothing to divide by."""
    if one is None or other is None or one.get(key) is None or not other.get(key):
        return None
    return float(one[key] / other[key])
