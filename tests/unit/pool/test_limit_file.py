"""Where the file lies that a pool's workers share."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.pool import limit_file
from dspool.pool.limit_file import LimitFile

pytestmark = pytest.mark.unit


def written_by_another(path: str) -> None:
    """Let another process open the file as a worker does, and write to it."""
    source = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), b'there', 0)"
    subprocess.run([sys.executable, "-c", source, path], check=True, timeout=20)


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
def test_it_is_in_memory_where_other_processes_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = os.listdir("/proc/self/fd")
    file = LimitFile()
    written_by_another(file.path)
    assert Path(file.path).read_bytes() == b"there"
    assert list(tmp_path.iterdir()) == []
    file.close()
    file.close()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("why", ["no memory files", "not to be opened"])
def test_elsewhere_it_lies_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if why == "no memory files":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr(limit_file, "_others_may_open", lambda path, fd: False)
    file = LimitFile()
    (folder,) = tmp_path.iterdir()
    assert Path(file.path).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
    written_by_another(file.path)
    file.close()
    file.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory files are Linux's")
def test_a_path_that_leads_elsewhere_or_is_anothers_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").touch()
    fd = os.memfd_create("limits")
    try:
        assert limit_file._others_may_open(f"/proc/{os.getpid()}/fd/{fd}", fd)
        assert not limit_file._others_may_open(str(tmp_path / "other"), fd)
        assert not limit_file._others_may_open(str(tmp_path / "nothing"), fd)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert not limit_file._others_may_open(f"/proc/{os.getpid()}/fd/{fd}", fd)
    finally:
        os.close(fd)
