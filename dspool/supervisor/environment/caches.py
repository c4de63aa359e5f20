"""DSPy's cache folder: whose it is, who else may write or read there, and what disk it is on.

Its entries are pickles, which DSPy by itself loads without restriction. Workers load only plain data and what LM
clients' packages define; but whoever may write there still decides what LMs answer, and may find a way to run code by
those packages. They hold prompts and answers: whoever may read there knows them.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from dspool.options import PoolOptions, WorkerGroup
from dspool.supervisor.environment.asked import Asked, Finding, failed, good, megabytes, warning
from dspool.supervisor.launch import worker_environment

LITTLE_BYTES = 2**30
_SETTINGS = "the option cache=, or DSPY_CACHEDIR where it names none,"
_NETWORK = frozenset("nfs nfs4 cifs smb3 smbfs 9p ceph glusterfs lustre beegfs afs fuse.sshfs fuse.s3fs".split())


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where DSPy keeps its cache in a process with these variables, and this working directory."""
    explicit = environment.get("DSPY_CACHEDIR")
    if explicit:
        return Path(os.path.abspath(explicit))
    home = environment.get("HOME")
    try:
        return Path(os.path.abspath(home) if home else Path.home()) / ".dspy_cache"
    except RuntimeError:  # as DSPy does without a home
        return Path(os.path.abspath(".dspy_cache"))


def folder_of(options: PoolOptions, group: WorkerGroup) -> Path | None:
    """Where a group's workers keep LMs' answers; None where they keep none on disk."""
    if options.cache is False:
        return None
    if options.cache is True:
        folder = cache_folder(worker_environment(options.env, group.env))
    else:
        folder = Path(options.cache)
    namespace = group.cache_namespace or options.cache_namespace
    return folder if namespace is None else folder / f"namespace-{_caseless(namespace)}"


def _caseless(name: str) -> str:
    """The name as a file system that knows no capitals tells it from others: "Red" is "+red"."""
    return re.sub("[A-Z]", lambda capital: "+" + capital[0].lower(), name)


def cache(asked: Asked) -> list[Finding]:
    """Each cache folder of the pool's groups."""
    if asked.options.cache is False:
        return [good("none: cache=False")]
    return [_trust(folder) for folder in _folders(asked)]


def cache_privacy(asked: Asked) -> list[Finding]:
    """Who else can read it."""
    return [_privacy(folder) for folder in _folders(asked) if os.path.isdir(folder)]


def _folders(asked: Asked) -> list[Path]:
    folders = (folder_of(asked.options, group) for group in asked.options.groups)
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def _trust(folder: Path) -> Finding:
    try:
        found = folder.stat()
    except FileNotFoundError:
        return _to_be_made(folder)
    except OSError as error:
        return _memory_only(f"{folder} can't be looked at ({error.strerror})")
    if not stat.S_ISDIR(found.st_mode):
        return _memory_only(f"{folder} is no folder")
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (os.geteuid(), 0):
        return failed(
            f"{folder} belongs to another user (uid {found.st_uid}): its entries are pickles, and what that user puts "
            "there runs in the workers",
            f"set {_SETTINGS} to a folder of your own, with mode 0700",
        )
    if mode & stat.S_IWOTH or mode & stat.S_IWGRP:
        who = "everybody" if mode & stat.S_IWOTH else f"the group {found.st_gid}"
        return failed(
            f"{folder} can be written to by {who} (mode {mode:04o}): its entries are pickles, and what others put "
            "there runs in the workers",
            f"chmod 700 {folder}, and delete what is in it; or set {_SETTINGS} to a folder of your own",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        return _memory_only(f"{folder} can't be written to (mode {mode:04o})")
    return _disk(folder, mode)


def _to_be_made(folder: Path) -> Finding:
    parent = next((above for above in folder.parents if above.exists()), folder.parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        return _memory_only(f"{folder} does not exist, and can't be made in {parent}")
    return good(f"{folder} does not exist yet; it is made, with mode 0700, at the first call that needs it")


def _memory_only(reason: str) -> Finding:
    return warning(
        f"{reason}: DSPy caches in each worker's memory alone", f"set {_SETTINGS} to a folder that can be written to"
    )


def _disk(folder: Path, mode: int) -> Finding:
    kind, free = filesystem_of(folder), shutil.disk_usage(folder).free
    told = f"{folder}, mode {mode:04o}, on {kind or 'an unknown file system'} with {megabytes(free)} free"
    if kind in _NETWORK:
        return warning(
            f"{told}: it is SQLite, whose locks are slow and not reliable over a network",
            f"set {_SETTINGS} to a folder on a local disk",
        )
    if free < LITTLE_BYTES:
        return warning(f"{told}: calls whose answers can't be stored are paid for again", "make room there")
    return good(told)


def filesystem_of(folder: Path) -> str:
    """The type of the file system that a folder is on, as in ext4; empty where that can't be known."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        real = str(folder.resolve())
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        mount = fields[1].replace("\\040", " ")
        if len(mount) >= len(best) and (real + "/").startswith(mount.rstrip("/") + "/"):
            best, kind = mount, fields[2]
    return kind


def _privacy(folder: Path) -> Finding:
    mode = stat.S_IMODE(folder.stat().st_mode)
    open_to = [
        who
        for who, read, enter in (
            ("everybody", stat.S_IROTH | stat.S_IXOTH, stat.S_IXOTH),
            ("its group", stat.S_IRGRP | stat.S_IXGRP, stat.S_IXGRP | stat.S_IXOTH),
        )
        if mode & read and all(above.stat().st_mode & enter for above in folder.resolve().parents)
    ]
    if open_to:
        return warning(
            f"{folder} can be read by {open_to[0]} (mode {mode:04o}): it holds prompts and answers",
            f"chmod 700 {folder}",
        )
    return good(f"{folder}, mode {mode:04o}; no other user gets to it")
