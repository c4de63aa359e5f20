"""The transcript meets every command and every error code."""

from __future__ import annotations

import pytest

from tests.integration.worker.bridge import transcript

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_the_transcript_meets_every_command_and_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert transcript.main() == 0, capsys.readouterr().out[-2000:]
