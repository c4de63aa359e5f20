"""What a pool's options mean for its workers' start: the start method, the handshake, what is asked of the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from dspool.errors import OptionsError
from dspool.lm_limits import LMLimit
from dspool.options import PoolOptions, WorkerGroup
from dspool.pool.lm_specs import adapter_spec, lm_spec
from dspool.protocol.messages import BootConfig, CacheSpec, LimitSpec, LimitsSpec, LMSpec, NamedProgram
from dspool.protocol.private_folder import make_private
from dspool.supervisor.environment import Asked, Program
from dspool.supervisor.environment.caches import folder_of
from dspool.supervisor.launch import Launcher, SpawnLauncher
from dspool.supervisor.templates import TemplateLauncher, managers_sys_path


def make_launcher(options: PoolOptions, mask: Callable[[str], str] = str) -> Launcher:
    """The start method that the options ask for. `mask` takes keys out of what its templates write."""
    if options.start_method == "spawn":
        return SpawnLauncher()
    return TemplateLauncher(start_timeout_s=options.start_timeout_s, needs_dspy=lambda: needs_dspy(options), mask=mask)


def needs_dspy(options: PoolOptions) -> bool:
    """Whether a template imports DSPy: the options name an LM, an adapter or a cache, or this process has imported it.

    Else a pool of plain functions would pay for what it never uses.
    """
    own_cache = any(map(partial(_has_own_cache, options), options.groups))
    return options.lm is not None or options.adapter is not None or own_cache or "dspy" in sys.modules


def boot_config(
    options: PoolOptions,
    worker_id: int,
    group: str,
    *,
    lm: LMSpec | None,
    adapter: str | bytes | None,
    warm: Sequence[NamedProgram] = (),
    limits: LimitsSpec | None = None,
) -> BootConfig:
    """What the handshake tells a worker of a group."""
    its_group = next(each for each in options.groups if each.name == group)
    return BootConfig(
        worker_id=worker_id,
        pool=options.name,
        sys_path=managers_sys_path(),
        preload=[*options.preload, *its_group.preload],
        warm=list(warm),
        lm=lm,
        adapter=adapter,
        max_programs=options.max_programs,
        max_frame_bytes=options.max_frame_bytes,
        on_loop=options.execution == "async",
        cache=cache_spec(options, its_group),
        limits=limits,
        # What runs this interpreter, from this sys.path, finds what this process has found.
        required_packages=[] if options.python is None else list(options.required_packages),
    )


def limits_spec(options: PoolOptions, path: str) -> LimitsSpec:
    """What the workers may ask of LMs together, and the file by which they know of each other."""
    models = {
        model: LimitSpec(limit.requests_per_minute, limit.tokens_per_minute, limit.burst_s)
        for model, limit in options.lm_limits.items()
        if isinstance(limit, LMLimit)
    }
    return LimitsSpec(path, models)


def cache_spec(options: PoolOptions, group: WorkerGroup) -> CacheSpec:
    """DSPy's cache in the workers of a group."""
    folder = folder_of(options, group)
    entries = 0 if options.cache is False else options.cache_memory_entries
    return CacheSpec(None if folder is None else str(folder), entries, _has_own_cache(options, group))


def make_cache_folders(options: PoolOptions) -> None:
    """Make the folders that the options name. DSPy's own is made by the worker that first needs it.

    Raises:
        OptionsError: one can't be made, or not written to.
    """
    if isinstance(options.cache, bool):
        return
    for group in options.groups:
        folder = folder_of(options, group)
        assert folder is not None
        try:
            make_private(folder)
            problem = "" if os.access(folder, os.W_OK | os.X_OK) else "it can't be written to"
        except FileExistsError as error:
            problem = f"{error.filename} is no folder"
        except OSError as error:
            problem = error.strerror or repr(error)
        if problem:
            raise OptionsError(
                f"pool {options.name!r}: cache={os.fspath(options.cache)!r}: {folder} can't be used: {problem}. Name "
                "a folder that this user may write to, or cache=False"
            )


def _has_own_cache(options: PoolOptions, group: WorkerGroup) -> bool:
    """Whether the options say more of the cache than the defaults, so that it must be there before any program."""
    named = options.cache_namespace is not None or group.cache_namespace is not None
    return options.cache is not True or named


def asked_of(options: PoolOptions, programs: tuple[Program, ...] = (), launcher: Launcher | None = None) -> Asked:
    """What the options ask of an environment. What is wrong with LM and adapter is in it, and raises nothing."""
    problems: dict[str, str] = {}
    lm, adapter = None, None
    try:
        lm = lm_spec(options.lm) if options.lm is not None else None
    except OptionsError as error:
        problems["lm"] = str(error)
    try:
        adapter = adapter_spec(options.adapter)
    except OptionsError as error:
        problems["adapter"] = str(error)
    return Asked(
        options=options,
        lm=lm,
        problems=problems,
        programs=programs,
        uses_dspy=needs_dspy(options),
        sys_path=managers_sys_path(),
        make_launcher=lambda: launcher or make_launcher(options),
        boot_config=lambda worker_id, group: boot_config(options, worker_id, group, lm=lm, adapter=adapter),
    )
