"""python -m dspool.worker.bridge: see its --help."""

from __future__ import annotations

from dspool.worker.bridge.options import read_options
from dspool.worker.bridge.process import run

if __name__ == "__main__":
    run(read_options())
