"""A module whose import never ends."""

from __future__ import annotations

import os

from tests.chaos.hanging import DOOR, arrive, wait_for_ever

arrive(os.environ[DOOR])
wait_for_ever()
