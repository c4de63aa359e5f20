"""DSPy's cache of LMs' answers as the pool's options want it in a worker.

Rules:
    1. The disk cache opens with the first request that looks into it: that takes 48 file descriptors, and a template,
       which makes no request, must never hold them.
    2. Its entries are pickles that other processes wrote. Only plain data and LM clients' own answers are loaded.
    3. A folder that can't be used costs the disk cache, never a call.

Imported by the runtime alone.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients import DISK_CACHE_LIMIT

from dspool.protocol.messages import CacheSpec
from dspool.protocol.private_folder import make_private

if TYPE_CHECKING:

    class Cache:
        """What is used here of DSPy's cache, which is not typed."""

        disk_cache: Any
        enable_disk_cache: bool

        def __init__(self, disk: bool, memory: bool, folder: str | None, limit: int, **settings: Any) -> None: ...
        def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any: ...

else:
    from dspy.clients.cache import Cache

_log = logging.getLogger(__name__)


class PoolCache(Cache):
    """DSPy's cache with a disk cache that opens by itself when it is first looked into.

    Args:
        spec: what it keeps, and where.
    """

    def __init__(self, spec: CacheSpec) -> None:
        super().__init__(False, spec.entries > 0, None, DISK_CACHE_LIMIT, memory_max_entries=spec.entries or 1)
        self._opening = threading.Lock()
        self.disk_cache_dir = spec.folder
        if spec.folder is not None:
            self.enable_disk_cache = True
            del self.disk_cache  # so that the first look for it comes to __getattr__

    def __getattr__(self, name: str) -> Any:
        """The disk cache, opened; called only while it isn't there."""
        if name != "disk_cache":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with self._opening:
            if "disk_cache" not in vars(self):
                self.disk_cache = self._open()
            return vars(self)["disk_cache"]

    def get(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> Any:
        """As DSPy's. Files that were damaged or cut off since they were opened are as an empty cache."""
        try:
            return super().get(request, ignored_args_for_cache_key)
        except (sqlite3.Error, OSError) as error:
            if not self.enable_disk_cache:
                raise
            self._do_without(error)
            return super().get(request, ignored_args_for_cache_key)

    def _open(self) -> Any:
        folder = str(self.disk_cache_dir)
        try:
            make_private(Path(folder))
            return Cache(True, False, folder, DISK_CACHE_LIMIT, restrict_pickle=True).disk_cache
        except Exception as error:
            self._do_without(error)
            return {}

    def _do_without(self, error: Exception) -> None:
        self.enable_disk_cache = False
        folder = self.disk_cache_dir
        _log.warning("the cache %s can't be used (%s): LMs' answers are kept in memory alone", folder, error)


def set_cache(spec: CacheSpec) -> None:
    """Make this DSPy's cache. One that is set already stays where the pool's options don't say otherwise."""
    with dspy._cache_lock:  # else a first look at DSPy's own on another thread puts that in its place
        if spec.explicit or "cache" not in vars(dspy):
            dspy.cache = PoolCache(spec)
