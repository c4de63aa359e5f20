"""The workers' interpreter: whether it is one, and what is installed for it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import NamedTuple

from dspool import requirements
from dspool.errors import OptionsError
from dspool.supervisor.environment.asked import Asked, Finding, Kind, counted, failed, good, warning
from dspool.supervisor.environment.facts import Facts, NoFacts, read_facts

OLDEST, NEWEST = (3, 11), (3, 13)
"""Pythons that dspool is made for and tested with."""
_INSTALL = "install it for {python}: {python} -m pip install {what!r}"
_HARMLESS: tuple[tuple[str, str, str], ...] = (
    # file, all of its code, whose it is
    (
        r"distutils-precedence\.pth",
        r"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = [\w. (),'=]+; enabled and "
        r"__import__\('_distutils_hack'\)(\.add_shim\(\))?;? *",
        "setuptools",
    ),
    (r"__editable__\..*\.pth", r"import (__editable___\w+_finder); \1\.install\(\)", "an editable install"),
    (r"_editable_impl_.*\.pth", r"import _editable_impl_\w+", "an editable install"),
    (r"_virtualenv\.pth", r"import _virtualenv", "virtualenv"),
    (
        r".*coverage.*\.pth",
        r"import sys; exec\('import os(\\n)+if os\.getenv\(\"COVERAGE_PROCESS_START\"\)[\w. (\")]+:\\n try:\\n"
        r"  import coverage\\n except:\\n  pass\\n else:\\n  coverage\.process_startup\([\w=\"]*\)'\)",
        "coverage; it does nothing unless COVERAGE_PROCESS_START is set",
    ),
    (
        r".*-nspkg\.pth",
        r"import sys, types, os; ?has_mfs = sys\.version_info > \(3, 5\); ?p = os\.path\.join\(.*",
        "a namespace package",
    ),
)


class Missing(NamedTuple):
    """Why an interpreter can't be used at all."""

    reason: str
    advice: str


def find_interpreter(asked: Asked, kind: Kind) -> str | Missing:
    """The interpreter's path, as starting it would find it. Looks at files alone."""
    python = asked.options.executable
    if not python:
        return Missing(
            "this process doesn't know its own interpreter (sys.executable is empty, as in a program that embeds "
            "Python)",
            "say which with python=",
        )
    own = asked.options.python is None
    advice = "start this program by a Python that stays where it is" if own else "correct python="
    folder_given = os.path.dirname(python)
    found = shutil.which(python, path=None if folder_given else kind.environment.get("PATH"))
    if found is not None:
        return found
    if not folder_given or not os.path.exists(python):
        return Missing(f"Python executable not found: {python}", advice)
    what = "it is a folder" if os.path.isdir(python) else "it is not executable"
    return Missing(f"Python executable can't be run: {python} ({what})", advice)


def interpreter(asked: Asked) -> list[Finding]:
    """Whether the file is there, for each kind. No process is started."""
    findings = {}
    for kind in asked.kinds():
        found = find_interpreter(asked, kind)
        if isinstance(found, Missing):
            findings[found.reason] = failed(found.reason, found.advice, kind.subject)
        else:
            findings[found] = good(found)
    return list(findings.values())


def distributions(asked: Asked) -> list[str]:
    """What is asked for by name."""
    required = [requirements.parse(text).name for text in asked.options.required_packages]
    return list(dict.fromkeys(["dspy-ai", "dspy", "litellm", *required]))


def ask(asked: Asked, kind: Kind) -> Facts | Finding:
    """What the interpreter says of itself, by running it; or why it can't be asked."""
    python = asked.options.executable
    try:
        return read_facts(python, asked.sys_path, distributions(asked), kind.environment)
    except NoFacts as error:
        return failed(
            f"{python} is not a Python that can be used: {error}", "correct python=, or repair it", kind.subject
        )
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOENT and os.path.exists(python):
            reason = "its first line names an interpreter that doesn't exist"
        elif error.errno == errno.ENOEXEC:
            reason = "it is no program"
        return failed(f"Python executable can't be run: {python} ({reason})", "correct python=", kind.subject)


# --- what it says of itself -------------------------------------------------------------------------------------------


def python(asked: Asked, kind: Kind, facts: Facts) -> Finding:
    """Its version."""
    told = f"{facts.implementation} {facts.version}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", facts.version)[:2])
    supported = ".".join(map(str, OLDEST)) + " to " + ".".join(map(str, NEWEST))
    if numbers < OLDEST:
        return failed(
            f"{told} is too old: dspool needs {'.'.join(map(str, OLDEST))} or newer",
            "use another python=",
            kind.subject,
        )
    if numbers > NEWEST or facts.implementation != "CPython":
        return warning(
            f"{told}: dspool is tested with CPython {supported}", "use one of these, or try it well", kind.subject
        )
    return good(told, kind.subject)


def dspool(asked: Asked, kind: Kind, facts: Facts) -> Finding:
    """A worker's start finds dspool there: sys.path comes with the handshake, which is later."""
    here = _own_version()
    install = _INSTALL.format(python=facts.executable, what=_own_requirement(here))
    if facts.dspool is None:
        told = f"dspool is not installed for {facts.executable}, and a worker's start needs it"
        return failed(told, install, kind.subject)
    if facts.dspool != here:
        there, ours = (version or "a copy of its source" for version in (facts.dspool, here))
        return warning(f"dspool for {facts.executable} is {there}, and here it is {ours}", install, kind.subject)
    return good(f"dspool {facts.dspool}" if facts.dspool else "a copy of its source, as here", kind.subject)


def _own_version() -> str:
    try:
        return metadata.version("dspool")
    except metadata.PackageNotFoundError:  # run from a copy of its source
        return ""


def _own_requirement(version: str) -> str:
    """What pip is to install to have the same: from the folder or address that this one came from, else by version."""
    with contextlib.suppress(metadata.PackageNotFoundError, ValueError, KeyError):
        origin = json.loads(metadata.distribution("dspool").read_text("direct_url.json") or "{}")  # PEP 610
        if "vcs_info" in origin:
            return f"dspool @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"
        if origin:
            return f"dspool @ {origin['url']}"
    return f"dspool=={version}" if version else "dspool"


def dspy(asked: Asked, kind: Kind, facts: Facts) -> Finding:
    """DSPy's version against what dspool is written for."""
    wanted = next((text for text in own_requirements() if requirements.parse(text).name == "dspy-ai"), None)
    version = facts.versions.get("dspy-ai") or facts.versions.get("dspy")
    if version is None:
        told = f"dspy-ai is not installed for {facts.executable}"
        if not asked.uses_dspy:
            return good(f"{told}; plain functions need none", kind.subject)
        return failed(told, _INSTALL.format(python=facts.executable, what=wanted or "dspy-ai"), kind.subject)
    if wanted is not None and not requirements.admits(requirements.parse(wanted), version):
        return failed(
            f"dspy {version} is installed, and dspool is written for {wanted}",
            _INSTALL.format(python=facts.executable, what=wanted),
            kind.subject,
        )
    return good(f"dspy {version}" + (f", supported: {wanted}" if wanted else ""), kind.subject)


def litellm(asked: Asked, kind: Kind, facts: Facts) -> Finding:
    """litellm's version against what the installed DSPy asks for."""
    version = facts.versions.get("litellm")
    wanted = _wanted_litellm(facts)
    if version is None:
        return good("litellm is not installed; models that DSPy's own client serves need none", kind.subject)
    if wanted is not None and not requirements.admits(requirements.parse(wanted), version):
        return failed(
            f"litellm {version} is installed, and dspy asks for {wanted}",
            _INSTALL.format(python=facts.executable, what=wanted),
            kind.subject,
        )
    return good(f"litellm {version}" + (f", dspy asks for {wanted}" if wanted else ""), kind.subject)


def _wanted_litellm(facts: Facts) -> str | None:
    for text in facts.requires.get("dspy", []):
        name_and_versions = text.partition(";")[0].strip()
        if re.match(r"litellm\b(?![-\[])", name_and_versions) and "extra ==" not in text:
            with contextlib.suppress(OptionsError):  # metadata that nobody can read asks for nothing
                requirements.parse(name_and_versions)
                return name_and_versions
    return None


def own_requirements() -> list[str]:
    """What dspool itself asks for, without extras; empty where its metadata isn't there."""
    try:
        return [text for text in metadata.requires("dspool") or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:  # run from a copy of its source
        return []


def packages(asked: Asked, kind: Kind, facts: Facts) -> list[Finding]:
    """`required_packages=`, in the workers' interpreter."""
    markers = {"python_version": ".".join(facts.version.split(".")[:2]), "python_full_version": facts.version}
    return _packages(asked, facts.versions, facts.executable, markers, kind.subject)


def packages_here(asked: Asked) -> list[Finding]:
    """The same without starting a process: for workers that run this interpreter."""
    required = asked.options.required_packages
    if not required or asked.options.python is not None:
        return []
    return _packages(asked, requirements.installed(required), sys.executable, {}, "")


def _packages(
    asked: Asked, versions: Mapping[str, str | None], executable: str, markers: Mapping[str, str], subject: str
) -> list[Finding]:
    required = asked.options.required_packages
    if not required:
        return [good("none is required (required_packages=)", subject)]
    if wrong := requirements.lacking(required, versions, markers):
        what = " ".join(_quoted(phrase.partition(" is ")[0]) for phrase in wrong)
        advice = f"{executable} -m pip install {what}"
        return [failed("; ".join(wrong) + f" (in {executable})", advice, subject)]
    return [good(", ".join(_versions_of(required, versions)), subject)]


def _quoted(requirement: str) -> str:
    """For a shell. A marker quotes its values in either way, and has no quotes inside them."""
    return "'" + requirement.replace("'", '"') + "'"


def _versions_of(required: Iterable[str], versions: Mapping[str, str | None]) -> list[str]:
    names = [requirements.parse(text).name for text in required]
    return [f"{name} {versions.get(name) or '(not needed here)'}" for name in names]


def code_in_pth(asked: Asked, kind: Kind, facts: Facts) -> list[Finding]:
    """.pth files that run code in each start of the interpreter, whatever it is started for."""
    findings, harmless = [], []
    for path, code in facts.code_files:
        whose = known_pth(os.path.basename(path), code)
        if whose is not None:
            harmless.append(f"{os.path.basename(path)} ({whose})")
            continue
        findings.append(
            warning(
                f"{path} runs code in every start of this interpreter: {code[0]:.90}"
                + (f" ... and {counted(len(code) - 1, 'line')} more" if len(code) > 1 else ""),
                "find out which package it belongs to, and delete it if it belongs to none: it runs in each worker, "
                "with your keys",
                kind.subject,
            )
        )
    if findings:
        return findings
    told = "none runs code that isn't known" if harmless else "none runs code"
    return [good(told + (f"; known: {', '.join(harmless)}" if harmless else ""), kind.subject)]


def known_pth(name: str, code: list[str]) -> str | None:
    """Whose .pth file it is where both its name and all of its code are known to be harmless, else None."""
    for names, lines, whose in _HARMLESS:
        if re.fullmatch(names, name) and all(re.fullmatch(lines, line, re.DOTALL) for line in code):
            return whose
    return None
