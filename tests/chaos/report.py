"""Findings as text and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tests.chaos.finding import Finding

_COLUMNS = ("scenario", "done", "lost", "left", "measured")
_MISSED_WIDTH = 110


def table(findings: Sequence[Finding]) -> str:
    """One table: a block of lines for each scenario, its missed goals below."""
    blocks = [_block(finding) for finding in findings]
    rows = [row for block in blocks for row in block]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    lines = [_line(_COLUMNS, widths), rule]
    for finding, block in zip(findings, blocks, strict=True):
        lines += [_line(row, widths) for row in block]
        for sentence in finding.missed:
            lines += textwrap.wrap(f"missed: {sentence}", _MISSED_WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines.append(rule)
    return "\n".join([*lines, verdict(findings)])


def verdict(findings: Sequence[Finding]) -> str:
    """What it comes to, in a line."""
    failed = [finding.scenario for finding in findings if finding.failed]
    missed = sum(len(finding.missed) for finding in findings)
    text = "nothing lost, nothing left" if not failed else f"FAILED: {', '.join(failed)}"
    return f"{len(findings)} scenarios: {text}; goals missed: {missed}"


def plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return {**dataclasses.asdict(finding), "failed": finding.failed}


def _block(finding: Finding) -> list[tuple[str, ...]]:
    columns = [
        [finding.scenario, f"seed {finding.seed}"],
        _entries(finding.done),
        _entries(finding.lost),
        _entries(finding.left),
        _entries(finding.measured),
    ]
    return list(zip_longest(*columns, fillvalue=""))


def _entries(values: Mapping[str, float]) -> list[str]:
    texts = {name.replace("_", " "): _number(value) for name, value in values.items()}
    width = max(map(len, texts.values()), default=0)
    return [f"{text:>{width}} {name}" for name, text in texts.items()]


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
