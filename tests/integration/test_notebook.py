"""The notebook of the examples, cell by cell in a real kernel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import psutil
import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.utils import ensure_async

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
CELL_S = 40
"""How long a cell may take."""


class Kernel(nbclient.NotebookClient):
    """Runs the notebook's cells, and presses the stop button when a worker says that it dawdles."""

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """What a cell says comes here."""
        if "event='dawdling'" in msg["content"].get("text", ""):
            assert self.km is not None
            self.stopping = asyncio.ensure_future(ensure_async(self.km.interrupt_kernel()))
        return super().process_message(msg, cell, cell_index)

    def run(self, number: int) -> str:
        """Run a code cell; what it said and gave."""
        index = [index for index, cell in enumerate(self.nb.cells) if cell.cell_type == "code"][number]
        cell = self.execute_cell(self.nb.cells[index], index)
        said = [each.get("text") or each.get("data", {}).get("text/plain") or each["ename"] for each in cell.outputs]
        return "\n".join(said)

    @property
    def process(self) -> psutil.Process:
        """The kernel's."""
        assert isinstance(self.km, KernelManager)
        assert isinstance(self.km.provisioner, LocalProvisioner)
        assert self.km.provisioner.pid is not None
        return psutil.Process(self.km.provisioner.pid)

    def started(self) -> list[psutil.Process]:
        """Its children: pools' workers and what they are forked from."""
        return self.process.children(recursive=True)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A kernel that keeps nothing in the home folder."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    client = Kernel(notebook, timeout=CELL_S)
    with client.setup_kernel(cwd=str(tmp_path)):
        yield client


def all_end(processes: list[psutil.Process]) -> bool:
    """Whether they do, within the time of a cell."""
    return psutil.wait_procs(processes, timeout=CELL_S)[1] == []


def test_the_notebook_runs(kernel: Kernel) -> None:
    kernel.run(0)
    first = kernel.started()
    kernel.run(0)
    assert all_end(first), "the pool of its first run"
    workers = kernel.started()

    assert kernel.run(1) == "'Slots'"
    assert kernel.run(2) == "'SLOTS'"
    stopped = kernel.run(3)
    assert "KeyboardInterrupt" in stopped
    printed = re.search(r"event='dawdling' .* pid=(\d+) ", stopped)
    assert printed is not None
    assert "['Slots', 'Slots', 'Slots']" in kernel.run(4)  # and the bar's line
    (stopped_worker,) = [process for process in workers if process.pid == int(printed[1])]
    assert all_end([stopped_worker])
    assert all(process.is_running() for process in workers if process != stopped_worker)
    assert kernel.run(5) == "['Slots', 'Slots']"
    left = kernel.started()
    kernel.run(6)
    assert all_end(left)


def test_a_kernel_that_is_restarted_leaves_no_workers(kernel: Kernel) -> None:
    kernel.run(0)
    workers = kernel.started()
    assert workers
    kernel.process.kill()
    assert all_end(workers)
