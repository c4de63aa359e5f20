"""The environment's checks one by one: those that start no process, and those that judge what was found out."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import pytest

import dspool
from dspool.pool.starts import asked_of
from dspool.supervisor import memory as gauges
from dspool.supervisor.environment import (
    AT_OPEN,
    CHECKS,
    OF_INTERPRETER,
    OF_START,
    QUICK,
    at_open,
    caches,
    look,
    machine,
    models,
)
from dspool.supervisor.environment.asked import Asked
from dspool.supervisor.environment.facts import Facts
from dspool.supervisor.environment.interpreter import (
    code_in_pth,
    dspool as own,
    dspy,
    known_pth,
    litellm,
    own_requirements,
    python,
)
from dspool.supervisor.environment.trial import Trial
from dspool.types import Check, ExitReport

pytestmark = pytest.mark.unit


def asked(**options: Any) -> Asked:
    """What such a pool asks."""
    return asked_of(dspool.PoolOptions(**options))


def facts(**differences: Any) -> Facts:
    """What an interpreter might say of itself."""
    usual: dict[str, Any] = {
        "executable": "/app/bin/python",
        "version": "3.12.4",
        "implementation": "CPython",
        "dspool": dspool.__version__,
        "versions": {"dspy-ai": "3.4.1", "dspy": "3.4.1", "litellm": "1.80.0"},
        "requires": {"dspy": ["litellm>=1.65.8; python_version < '3.15'", 'litellm[proxy]>=2; extra == "dev"']},
        "code_files": [],
    }
    return Facts(**(usual | differences))


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_check_has_words_and_those_of_open_exist() -> None:
    assert len(CHECKS) == len(QUICK) + len(OF_INTERPRETER) + len(OF_START)
    assert all(kind.text.endswith(".") for kind in CHECKS.values())
    assert set(AT_OPEN) <= {*QUICK, "packages"}


@pytest.mark.parametrize(
    ("limited", "said"),
    [
        ("gpt-4o-mini", "'openai/gpt-4o-mini' has no limit"),
        ("opnai/gpt-4o-mini", "'openai/gpt-4o-mini' has no limit"),
        ("openai/gpt-4o-mni", "'openai/gpt-4o-mini' has no limit"),
        ("openai/gpt-4o-mini", ""),
        ("openai/gpt-5o-mini", ""),
        ("anthropic/claude-haiku", ""),
        ("*", ""),
    ],
)
def test_a_limit_whose_model_is_misspelt_is_told_of(limited: str, said: str) -> None:
    limits = {limited: {"requests_per_minute": 5}}
    [found] = models.lm_limits(asked(workers=1, lm="openai/gpt-4o-mini", lm_limits=limits))
    assert found.status == ("warning" if said else "ok")
    assert said in found.reason
    assert limited in found.reason


def test_what_open_looks_at_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setattr(os, "fork", no_process)
    at_open(asked(lm="openai/gpt-4o-mini", required_packages="msgspec", workers=2), real=True)
    report = dspool.check_environment(workers=2, start=False, programs=["a -> b"])
    assert [check.name for check in report.checks if check.name in OF_START or check.name in OF_INTERPRETER] == []
    assert set(report.skipped) == {*OF_INTERPRETER, *OF_START}


def test_doubles_are_asked_for_descriptors_alone() -> None:
    nowhere = asked(python="/nowhere/python", workers=2)
    assert at_open(nowhere, real=False) == []
    with pytest.raises(dspool.WorkerStartError, match=r"not found: /nowhere/python\. Correct python="):
        at_open(nowhere, real=True)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_too_much_memory_is_said_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    small = asked(workers=2, start_method="spawn", lm="openai/gpt-4o-mini")
    monkeypatch.setattr(machine, "memory_limit", lambda: 100 * 2**20)
    found = machine.memory(small)
    assert found.status == "failed"
    assert "2 workers take about 120 MiB (spawn)" in found.reason
    assert "all there is are 100 MiB" in found.reason
    monkeypatch.setattr(machine, "memory_limit", lambda: 2**40)
    monkeypatch.setattr(machine, "memory_left", lambda: 100 * 2**20)
    assert machine.memory(small).status == "warning"
    monkeypatch.setattr(machine, "memory_left", lambda: 2**40)
    assert machine.memory(small).status == "ok"


def test_more_memory_than_this_machine_has_fails() -> None:
    assert machine.memory(asked(workers=4096, start_method="spawn", preload=["litellm"])).status == "failed"


@pytest.mark.parametrize(
    ("options", "megabytes"),
    [
        ({"start_method": "spawn", "lm": "openai/x"}, 10 * 60),
        ({"start_method": "spawn", "lm": "openai/x", "preload": ["litellm"]}, 10 * 200),
        ({"start_method": "template", "lm": "openai/x"}, 75 + 10 * 14),
        ({"start_method": "template", "lm": "openai/x", "preload": ["litellm"]}, 75 + 140 + 10 * 14),
    ],
)
def test_memory_is_counted_by_start_method(options: dict[str, Any], megabytes: int) -> None:
    assert machine.memory_needed(asked(workers=10, **options)) == megabytes * 2**20


@pytest.mark.parametrize(("limit", "used", "status"), [("10", "5", "failed"), ("1000", "5", "ok"), ("max", "5", "ok")])
def test_the_cgroups_pids_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str, status: str
) -> None:
    (tmp_path / "pids.max").write_text(limit)
    (tmp_path / "pids.current").write_text(used)
    monkeypatch.setattr(gauges, "cgroup_files", lambda controller, name, _: [tmp_path / name])
    found = machine.processes(asked(workers=4, start_method="spawn"))
    assert found.status == status
    assert "4 workers take 8 processes and threads" in found.reason
    if status == "failed":
        assert "the cgroup's pids.max leaves 5" in found.reason


@pytest.mark.parametrize(("limit", "status"), [(1, "failed"), (10**6, "ok"), (resource.RLIM_INFINITY, "ok")])
def test_the_users_processes_are_counted_unless_it_is_root(
    monkeypatch: pytest.MonkeyPatch, limit: int, status: str
) -> None:
    pool = asked(workers=4, start_method="spawn")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = machine.processes(pool)
    assert found.status == status
    if status == "failed":
        assert "RLIMIT_NPROC leaves 0" in found.reason
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine.processes(pool).status == "ok"


def test_the_tightest_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, limit, used in (("outer", "100", "90"), ("inner", "50", "10"), ("free", "max", "1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "max").write_text(limit)
        (tmp_path / folder / "current").write_text(used)
    folders = [tmp_path / name for name in ("outer", "inner", "free", "missing")]
    monkeypatch.setattr(gauges, "cgroup_files", lambda controller, name, _: [folder / name for folder in folders])
    assert gauges.cgroup_left("any", ("max", "current"), ("max", "current")) == 10


def test_more_workers_than_cores_are_told_of_with_a_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert machine.cores(asked(workers=8)).status == "ok"
    found = machine.cores(asked(workers=40))
    assert found.status == "warning"
    assert "workers=2, slots=20" in found.advice


def test_another_system_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = asked(workers=1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.system(pool).status == "warning"


def test_a_kernel_without_pidfds_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> NoReturn:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    found = machine.system(asked(workers=1))
    assert found.status == "warning"
    assert "Function not implemented" in found.reason


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of mode 0700 that the workers would use."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("DSPY_CACHEDIR", str(folder))
    return folder


@pytest.mark.parametrize(
    ("mode", "status", "said"),
    [
        (0o700, "ok", "mode 0700"),
        (0o755, "ok", "mode 0755"),
        (0o777, "failed", "can be written to by everybody (mode 0777)"),
        (0o770, "failed", "can be written to by the group"),
    ],
)
def test_whoever_may_write_into_the_cache_is_told(cache_folder: Path, mode: int, status: str, said: str) -> None:
    cache_folder.chmod(mode)
    [found] = caches.cache(asked(workers=1))
    assert found.status == status
    assert said in found.reason


def test_whoever_may_read_the_cache_is_told(cache_folder: Path) -> None:
    for above in cache_folder.parents:
        if above.stat().st_uid == os.geteuid() and above.name.startswith(("pytest-", "popen-")):
            above.chmod(0o755)
    cache_folder.parent.chmod(0o755)
    cache_folder.chmod(0o755)
    [found] = caches.cache_privacy(asked(workers=1))
    assert found.status == "warning"
    assert found.advice == f"chmod 700 {cache_folder}"
    cache_folder.parent.chmod(0o700)  # nobody gets there any more
    [found] = caches.cache_privacy(asked(workers=1))
    assert found.status == "ok"


def test_a_cache_that_is_no_folder_or_not_there_is_told(cache_folder: Path) -> None:
    cache_folder.rmdir()
    [found] = caches.cache(asked(workers=1))
    assert found.status == "ok"
    assert "does not exist yet" in found.reason
    assert caches.cache_privacy(asked(workers=1)) == []
    cache_folder.write_text("")
    [found] = caches.cache(asked(workers=1))
    assert found.status == "warning"
    assert "is no folder: DSPy caches in each worker's memory alone" in found.reason


def test_a_cache_whose_name_no_system_takes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_CACHEDIR", "/" + "x" * 300)
    [found] = caches.cache(asked(workers=1))
    assert found.status == "warning"
    assert "File name too long" in found.reason
    assert caches.cache_privacy(asked(workers=1)) == []


def test_each_group_has_the_cache_of_its_environment(cache_folder: Path, tmp_path: Path) -> None:
    groups = [
        dspool.WorkerGroup(name="a", workers=1),
        dspool.WorkerGroup(name="b", workers=1, env={"DSPY_CACHEDIR": None, "HOME": str(tmp_path / "home")}),
    ]
    first, second = caches.cache(asked(workers=groups))
    assert str(cache_folder) in first.reason
    assert str(tmp_path / "home" / ".dspy_cache") in second.reason


def test_the_cache_that_the_options_name_is_looked_at(cache_folder: Path, tmp_path: Path) -> None:
    groups = [
        dspool.WorkerGroup(name="a", workers=1),
        dspool.WorkerGroup(name="b", workers=1, cache_namespace="Tenant"),
        dspool.WorkerGroup(name="c", workers=1, env={"DSPY_CACHEDIR": "/nowhere"}),
    ]
    first, second = caches.cache(asked(workers=groups, cache=tmp_path / "answers"))
    assert f"{tmp_path / 'answers'} does not exist yet" in first.reason
    assert f"{tmp_path / 'answers' / 'namespace-+tenant'} does not exist yet" in second.reason
    [found] = caches.cache(asked(workers=1, cache_namespace="x"))
    assert f"{cache_folder / 'namespace-x'} does not exist yet" in found.reason
    [found] = caches.cache(asked(workers=1, cache=False))
    assert (found.status, found.reason) == ("ok", "none: cache=False")
    assert caches.cache_privacy(asked(workers=1, cache=False)) == []


def test_a_cache_on_a_network_is_told(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caches.filesystem_of(Path("/proc")) == "proc"
    monkeypatch.setattr(caches, "filesystem_of", lambda folder: "nfs4")
    [found] = caches.cache(asked(workers=1))
    assert found.status == "warning"
    assert "local disk" in found.advice


# --- language models --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_API_BASE", "_BASE_URL")):
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_keys")
def test_a_missing_key_fails_unless_something_may_still_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = models.lm_key(asked(workers=1, lm="openai/gpt-4o-mini"))
    assert (found.status, found.subject) == ("failed", "openai/gpt-4o-mini")
    assert "OPENAI_API_KEY is not set" in found.reason
    [found] = models.lm_key(asked(workers=1, lm="openai/gpt-4o-mini", preload=["app.keys"]))
    assert found.status == "warning"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    [found] = models.lm_key(asked(workers=1, lm="openai/gpt-4o-mini"))
    assert found.status == "ok"


@pytest.mark.usefixtures("no_keys")
def test_a_key_in_env_is_a_key_and_is_shown_nowhere() -> None:
    report = dspool.check_environment(
        workers=1, lm="openai/gpt-4o-mini", env={"OPENAI_API_KEY": "sk-very-secret"}, start=False
    )
    assert not [check for check in report.failed if check.name == "lm_key"]
    assert "sk-very-secret" not in repr(report)


@pytest.mark.usefixtures("no_keys")
@pytest.mark.parametrize("variable", ["OPENAI_API_BASE", "OPENAI_BASE_URL"])
def test_a_gateways_variable_is_told_without_its_value(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://user:word@host/v1")
    [found] = models.lm_gateway(asked(workers=1, lm="openai/gpt-4o-mini"))
    assert found.status == "warning"
    assert variable in found.reason
    assert "word" not in repr(found)
    [found] = models.lm_gateway(asked(workers=1, lm="openai/gpt-4o-mini", preload=["litellm"]))
    assert found.status == "ok"
    [found] = models.lm_gateway(asked(workers=1, lm="gemini/gemini-2.5-flash"))
    assert found.status == "ok"


@pytest.mark.parametrize("kind", [{"program_type": "program"}, {"program_type": "best_of_n", "inner": "program"}])
def test_whether_code_of_ones_own_needs_an_lm_is_not_known(kind: dict[str, Any]) -> None:
    more = {"n": 2, "reward": "app:reward", "threshold": 1.0} if "inner" in kind else {}
    report = dspool.check_environment(workers=1, programs=[{**kind, **more, "program": "app:make"}], start=False)
    assert [check.status for check in report.checks if check.name == "lm"] == ["ok"]


def test_a_signature_without_an_lm_is_a_warning() -> None:
    report = dspool.check_environment(workers=1, programs=["a -> b", "statistics:mean"], start=False)
    [found] = [check for check in report.checks if check.name == "lm"]
    assert found.status == "warning"
    assert "; a -> b can't do without" in found.reason


def test_what_others_wrote_is_told_without_the_keys_they_knew() -> None:
    pool = asked(
        workers=1, lm={"model": "openai/x", "api_key": "key-of-the-lm"}, env={"A_KEY": "key-of-env"}, preload="m"
    )
    said = "x" * 1000 + "key-of-env key-of-the-lm"
    report = ExitReport(worker_id=0, pid=None, reason="boot_error", detail=said, remote_traceback=said)
    told = look(pool, lambda *_: Trial(start_method="template", failure=report))
    [check] = [check for check in told if isinstance(check, Check) and check.name == "worker"]
    assert check.reason.endswith("x*** ***")
    assert len(check.reason) < 850
    assert check.details == "x" * 1000 + "*** ***"


def test_a_provider_that_is_almost_spelled_like_a_known_one_is_a_warning() -> None:
    [found] = models.lm(asked(workers=1, lm="opnai/gpt-4o-mini"))
    assert (found.status, found.subject) == ("warning", "opnai/gpt-4o-mini")
    assert found.advice.startswith('write "openai/gpt-4o-mini" if that is meant')
    for lm in ("openai/x", "ollama/x", {"model": "opnai/x", "custom_llm_provider": "opnai"}):
        [found] = models.lm(asked(workers=1, lm=lm))
        assert found.status == "ok"


def test_an_lm_that_is_none_is_a_failed_check() -> None:
    report = dspool.check_environment(workers=1, lm="gpt-4o-mini", adapter="yaml", start=False)
    found = {check.advice: check.reason for check in report.checks if check.name == "lm"}
    assert 'write "openai/gpt-4o-mini"' in found["correct lm="]
    assert "must be one of chat, json, xml" in found["correct adapter="]


# --- what an interpreter says of itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "implementation", "status"),
    [
        ("3.10.2", "CPython", "failed"),
        ("3.11.0", "CPython", "ok"),
        ("3.13.7", "CPython", "ok"),
        ("3.14.0", "CPython", "warning"),
        ("3.11.9", "PyPy", "warning"),
    ],
)
def test_versions_of_python(version: str, implementation: str, status: str) -> None:
    pool = asked(workers=1)
    found = python(pool, pool.kinds()[0], facts(version=version, implementation=implementation))
    assert found.status == status
    assert version in found.reason


@pytest.mark.parametrize(
    ("version", "status"), [(dspool.__version__, "ok"), ("0.0.0", "warning"), ("", "warning"), (None, "failed")]
)
def test_versions_of_dspool(version: str | None, status: str) -> None:
    pool = asked(workers=1)
    found = own(pool, pool.kinds()[0], facts(dspool=version))
    assert found.status == status
    if status != "ok":
        assert "/app/bin/python -m pip install 'dspool" in found.advice


@pytest.mark.parametrize(
    ("origin", "what"),
    [
        (None, f"dspool=={dspool.__version__}"),
        ({"url": "file:///src/dspool", "dir_info": {"editable": True}}, "dspool @ file:///src/dspool"),
        ({"url": "https://h/d.git", "vcs_info": {"vcs": "git", "commit_id": "c0"}}, "dspool @ git+https://h/d.git@c0"),
        ("no JSON", f"dspool=={dspool.__version__}"),
    ],
)
def test_dspool_is_installed_from_where_this_one_came_from(
    origin: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = origin if origin is None or isinstance(origin, str) else json.dumps(origin)
    monkeypatch.setattr(metadata.PathDistribution, "read_text", lambda *_: text)
    monkeypatch.setattr(metadata, "version", lambda _: dspool.__version__)
    pool = asked(workers=1)
    found = own(pool, pool.kinds()[0], facts(dspool=None))
    assert found.advice.endswith(f"/app/bin/python -m pip install '{what}'")


@pytest.mark.parametrize(
    ("version", "status"), [("3.4.1", "ok"), ("3.3.9", "failed"), ("3.5.0", "failed"), (None, "failed")]
)
def test_versions_of_dspy(version: str | None, status: str) -> None:
    pool = asked(workers=1, lm="openai/gpt-4o-mini")
    found = dspy(pool, pool.kinds()[0], facts(versions={"dspy-ai": version, "dspy": version}))
    assert found.status == status
    if status == "failed":
        assert "/app/bin/python -m pip install 'dspy-ai<3.5,>=3.4'" in found.advice


def test_what_supports_dspy_is_what_the_package_itself_asks_for() -> None:
    assert "dspy-ai<3.5,>=3.4" in own_requirements()


@pytest.mark.parametrize(("version", "status"), [("1.65.8", "ok"), ("1.65.7", "failed"), (None, "ok")])
def test_versions_of_litellm(version: str | None, status: str) -> None:
    pool = asked(workers=1)
    found = litellm(pool, pool.kinds()[0], facts(versions={"litellm": version}))
    assert found.status == status
    if status == "failed":
        assert "dspy asks for litellm>=1.65.8" in found.reason


def test_metadata_that_nobody_can_read_asks_for_no_litellm() -> None:
    pool = asked(workers=1)
    broken = facts(versions={"litellm": "1.0"}, requires={"dspy": ["litellm>=not a version"]})
    assert litellm(pool, pool.kinds()[0], broken).status == "ok"


DISTUTILS = (
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
    "enabled and __import__('_distutils_hack').add_shim(); "
)


@pytest.mark.parametrize(
    ("name", "code", "known"),
    [
        ("distutils-precedence.pth", DISTUTILS, True),
        ("__editable__.app-1.0.pth", "import __editable___app_1_0_finder; __editable___app_1_0_finder.install()", True),
        ("_virtualenv.pth", "import _virtualenv", True),
        ("distutils-precedence.pth", DISTUTILS + "import evil", False),
        ("_virtualenv.pth", "import _virtualenv; import evil", False),
        ("litellm_init.pth", "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', '...'])", False),
        ("other.pth", DISTUTILS, False),
    ],
)
def test_a_pth_file_is_known_by_its_name_and_all_of_its_code(name: str, code: str, known: bool) -> None:
    assert (known_pth(name, [code]) is not None) is known
    pool = asked(workers=1)
    [found] = code_in_pth(pool, pool.kinds()[0], facts(code_files=[(f"/site/{name}", [code])]))
    assert found.status == ("ok" if known else "warning")
    assert name in found.reason


def test_pth_files_of_this_environment_are_all_known() -> None:
    from dspool.supervisor.environment.probe import code_files

    assert [path for path, code in code_files() if known_pth(os.path.basename(path), code) is None] == []
