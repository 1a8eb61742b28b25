"""What is installed is what was chosen, and nothing of it runs before it is imported."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")
# of a CUDA build of torch, or of CPU's as the Makefile has it
BESIDE_TORCH = {"triton"}


def asked_for() -> list[Requirement]:
    """All that pyproject.toml names, to run, to test and to build."""
    project = PROJECT["project"]
    extras = [each for named in project["optional-dependencies"].values() for each in named]
    texts = [*project["dependencies"], *extras, *PROJECT["build-system"]["requires"]]
    found = [Requirement(text) for text in texts]
    return [each for each in found if each.name != project["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match is not None, f"{line!r} is no exact version"
            found[str(canonicalize_name(match[1]))] = match[2]
    return found


def needed(requirements: list[Requirement]) -> Iterator[tuple[str, Distribution | None]]:
    """What is asked for and what that asks for in turn, here; None where it is not installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    left = list(requirements)
    while left:
        requirement = left.pop()
        name = str(canonicalize_name(requirement.name))
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            yield name, None
            continue
        yield name, found
        for text in found.requires or ():
            inner = Requirement(text)
            environments = [{"extra": extra} for extra in ("", *extras)]
            if inner.marker is None or any(map(inner.marker.evaluate, environments)):
                left.append(inner)


@pytest.fixture(scope="module")
def packages() -> dict[str, Distribution | None]:
    return dict(needed(asked_for()))


def test_54_every_package_has_its_exact_version(packages: dict[str, Distribution | None]) -> None:
    pinned = pins()
    assert len(packages) > 100
    assert set(packages) - set(pinned) <= BESIDE_TORCH, "add them to constraints.txt"
    for name in BESIDE_TORCH:
        assert re.search(rf"{name}==[0-9.]+", MAKEFILE), name
    for name, found in packages.items():
        if found is not None and name not in BESIDE_TORCH:
            # "+cpu" says which build it is
            assert found.version.partition("+")[0] == pinned[name], f"{name}: run make install"


def test_54_packages_come_from_the_index_and_run_nothing_when_they_are_installed() -> None:
    assert all(requirement.url is None for requirement in asked_for())
    assert "export PIP_ONLY_BINARY := :all:" in MAKEFILE, "a source distribution runs its setup"
    installs = [line for line in MAKEFILE.splitlines() if "pip install" in line]
    assert len(installs) == 3
    for line in installs:
        is_pinned = "--constraint constraints.txt" in line or "PIP_CONSTRAINT=" in line
        assert is_pinned or "$(TRITON)" in line


def test_54_no_package_runs_at_every_start_of_python(
    packages: dict[str, Distribution | None],
) -> None:
    """By a `.pth` file with a line of code, as stolen packages have had."""
    found = [
        str(file)
        for package in packages.values()
        for file in (() if package is None else package.files or ())
        if file.suffix == ".pth" or file.name in ("sitecustomize.py", "usercustomize.py")
    ]
    # setuptools' own, which puts distutils back
    assert set(found) <= {"distutils-precedence.pth"}
