"""What must be installed, as requirements ("pandas>=2"), against what is.

A requirement here is a name, a version range, and a marker that says where it holds. Rules:
    1. Extras and addresses are refused: what they bring can't be told from a name and a version.
    2. A requirement whose marker doesn't hold where the workers run asks for nothing.

`packaging` is imported by the functions that need it: most pools require nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dspool.errors import OptionsError

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def parse(text: str) -> Requirement:
    """A requirement from its text.

    Raises:
        OptionsError: it can't be read, or asks for more than a name and versions.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).partition("\n")[0]
        raise OptionsError(f"required_packages: {text!r} is no requirement, as 'pandas>=2' is: {reason}") from None
    if requirement.url is not None:
        raise OptionsError(f"required_packages: {requirement.name!r} has an address; name a version instead")
    if requirement.extras:
        raise OptionsError(
            f"required_packages: {text!r} has extras; name the packages that they bring, each with its version"
        )
    return requirement


def installed(texts: Iterable[str]) -> dict[str, str | None]:
    """Distribution -> its version in this interpreter, None where it is not installed."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for text in texts:
        name = parse(text).name
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def lacking(
    texts: Iterable[str], versions: Mapping[str, str | None], environment: Mapping[str, str] | None = None
) -> list[str]:
    """What is not as required, a phrase each.

    Args:
        texts: requirements.
        versions: distribution -> its version there.
        environment: what markers are held against, as `packaging` names it; None: this interpreter.
    """
    phrases = []
    for text in texts:
        requirement = parse(text)
        if requirement.marker is not None and not requirement.marker.evaluate(dict(environment or {})):
            continue
        version = versions.get(requirement.name)
        if version is None:
            phrases.append(f"{text} is not installed")
        elif not admits(requirement, version):
            phrases.append(f"{text} is needed, and {requirement.name} {version} is installed")
    return phrases


def admits(requirement: Requirement, version: str) -> bool:
    """Whether a version is in the range. One that can't be read is in no range but the empty one."""
    from packaging.version import InvalidVersion, Version

    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return not requirement.specifier
