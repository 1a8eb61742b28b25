"""Only what a bare GPU image has can be imported: pytest and these packages, with what they need.

What `make gpu` runs must not need more. Without a device it runs behind this, so that an import
that such an image lacks fails here and not there. A pytest plugin (`-p benchmarks.gpu.bare_image`),
and `install` for other programs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    packages_distributions,
)
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "peft", "pytest", "rich")
OWN = frozenset({"weft", "weft_adapters", "weft_kernels", "benchmarks", "tests"})


class _Finder(PathFinder):
    """Does not find the forbidden modules. It says so as a finder does that has looked, not by
    raising: libraries ask what is there before they import it."""

    forbidden: frozenset[str] = frozenset()

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in cls.forbidden:
            return None
        return super().find_spec(fullname, path, target)


def foreign_modules() -> frozenset[str]:
    """The names at the top of what is installed here and not there."""
    there = _with_requirements(PACKAGES)
    return frozenset(
        module
        for module, names in packages_distributions().items()
        if module not in OWN and not there & {str(canonicalize_name(name)) for name in names}
    )


def _with_requirements(packages: Iterable[str]) -> set[str]:
    found: set[str] = set()
    left = [str(canonicalize_name(name)) for name in packages]
    while left:
        name = left.pop()
        package = _distribution(name)
        if name in found or package is None:
            continue
        found.add(name)
        for line in package.requires or ():
            requirement = Requirement(line)
            # extras are nobody's until they are asked for
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(str(canonicalize_name(requirement.name)))
    return found


def _distribution(name: str) -> Distribution | None:
    """None for what is not installed: a requirement of another platform, or one that is too much
    for the machine, which then fails where it is imported."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def install() -> None:
    """From now on; RuntimeError when something foreign is imported already."""
    foreign = foreign_modules()
    early = foreign & {name.partition(".")[0] for name in sys.modules}
    if early:
        raise RuntimeError(f"imported, and no part of a GPU image: {', '.join(sorted(early))}")
    _Finder.forbidden = foreign
    sys.meta_path[:] = [_Finder if finder is PathFinder else finder for finder in sys.meta_path]


def pytest_load_initial_conftests() -> None:
    install()
