"""Whether the installed packages are those that jaxift, and the packages it stands on, ask for."""

from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from jaxift.artifacts import digest, versions
from jaxift.selfcheck.lines import Line, failed_hosts, from_hosts

ASKED = ("jaxift", "jax", "flax", "optax", "orbax-checkpoint")
"""Packages whose requirements are looked at: those that must fit each other."""


def lines() -> list[Line]:
    """One line: the versions, and every requirement that is not met; hosts must have the same."""
    found = from_hosts("software", lambda: {"versions": found_versions(), "problems": problems()})
    if failed := failed_hosts(found):
        return [Line("software", "bad", failed)]
    here = found[0]["versions"]
    wrong = list(dict.fromkeys(problem for each in found for problem in each["problems"]))
    others = [str(place) for place, each in enumerate(found) if digest(each["versions"]) != digest(here)]
    if others:
        wrong.append(f"hosts {', '.join(others)} have other versions than host 0: install the same everywhere")
    text = ", ".join(f"{name} {version}" for name, version in here.items())
    facts = {"versions": here, "problems": wrong}
    return [Line("software", "bad" if wrong else "good", f"{'; '.join(wrong)} ({text})" if wrong else text, facts)]


def found_versions() -> dict[str, str]:
    """Versions of what numbers depend on, and of the TPU's driver where it is installed."""
    try:
        return {**versions(), "libtpu": metadata.version("libtpu")}
    except metadata.PackageNotFoundError:
        return versions()


def problems(asked: tuple[str, ...] = ASKED) -> list[str]:
    """Every requirement of these packages that is not met, with the mend."""
    return [problem for name in asked for problem in _unmet(name)]


def _unmet(name: str) -> list[str]:
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return [f"{name} is not installed: pip install {name}"]
    wanted = [Requirement(each) for each in requirements]
    # an extra's requirements have a marker that names it, and are true of nobody who does not ask for it
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [problem for each in wanted if (problem := _problem(name, each))]


def _problem(name: str, wanted: Requirement) -> str:
    mend = f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        version: Any = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{name} needs {wanted.name}, which is not installed: {mend}"
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{name} needs {wanted.name}{wanted.specifier}, but {version} is installed: {mend}"
