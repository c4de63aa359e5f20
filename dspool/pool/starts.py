"""What a pool's options mean for its workers' start: the start method, the handshake, what is asked of the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from dspool.errors import OptionsError
from dspool.options import PoolOptions
from dspool.pool.lm_specs import adapter_spec, lm_spec
from dspool.protocol.messages import BootConfig, LMSpec, NamedProgram
from dspool.supervisor.environment import Asked, Program
from dspool.supervisor.launch import Launcher, SpawnLauncher
from dspool.supervisor.templates import TemplateLauncher, managers_sys_path


def make_launcher(options: PoolOptions, mask: Callable[[str], str] = str) -> Launcher:
    """The start method that the options ask for. `mask` takes keys out of what its templates write."""
    if options.start_method == "spawn":
        return SpawnLauncher()
    return TemplateLauncher(start_timeout_s=options.start_timeout_s, needs_dspy=lambda: needs_dspy(options), mask=mask)


def needs_dspy(options: PoolOptions) -> bool:
    """Whether a template imports DSPy: the pool has an LM or an adapter, or this process has imported it itself.

    Else a pool of plain functions would pay for what it never uses.
    """
    return options.lm is not None or options.adapter is not None or "dspy" in sys.modules


def boot_config(
    options: PoolOptions,
    worker_id: int,
    group: str,
    *,
    lm: LMSpec | None,
    adapter: str | bytes | None,
    warm: Sequence[NamedProgram] = (),
) -> BootConfig:
    """What the handshake tells a worker of a group."""
    preload = next(each.preload for each in options.groups if each.name == group)
    return BootConfig(
        worker_id=worker_id,
        pool=options.name,
        sys_path=managers_sys_path(),
        preload=[*options.preload, *preload],
        warm=list(warm),
        lm=lm,
        adapter=adapter,
        max_programs=options.max_programs,
        max_frame_bytes=options.max_frame_bytes,
        on_loop=options.execution == "async",
        # What runs this interpreter, from this sys.path, finds what this process has found.
        required_packages=[] if options.python is None else list(options.required_packages),
    )


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
