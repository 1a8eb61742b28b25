"""Bases with their adapters, and the oracle. torch and transformers are imported by the first test
that wants one of them: most tests of the platform do without, as the gateway does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.bench import Bench
    from tests.oracle import NearTies, Oracle

pytest_plugins = ["tests.stores"]


@pytest.fixture(scope="session")
def create_bench() -> Callable[..., Bench]:
    """(folder, model, PEFT's arguments by adapter's name, **save_pretrained's) -> Bench."""
    from tests.bench import create_bench

    return create_bench


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Qwen3 with adapters of ranks 4 to 64 on different targets."""
    from tests.bench import create_dense_bench

    return create_dense_bench(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Qwen3-MoE with a dense layer, biases, and adapters that touch experts."""
    from tests.bench import create_moe_bench

    return create_moe_bench(tmp_path_factory.mktemp("moe"))


@pytest.fixture(params=["dense", "moe"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def demo_oracle() -> Oracle:
    """The demo base with all its adapters."""
    from tests.oracle import Oracle

    from weft.demo import ADAPTERS_DIR, BASE_DIR

    return Oracle(BASE_DIR, {folder.name: folder for folder in sorted(ADAPTERS_DIR.iterdir())})


@pytest.fixture(scope="session")
def demo(demo_oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The demo base and its adapters, to build engines on."""
    from tests.bench import Bench

    return Bench(demo_oracle, tmp_path_factory.mktemp("demo"))


_near_ties: list[NearTies] = []
# (positions, near-ties) of the tests of other processes
_told: list[tuple[int, int]] = []


@pytest.fixture
def near_ties() -> NearTies:
    from tests.oracle import NearTies

    _near_ties.append(NearTies())
    return _near_ties[-1]


def _counted() -> list[tuple[int, int]]:
    """(positions, near-ties) of each of this process's tests."""
    return [(ties.num_positions, ties.num_ties) for ties in _near_ties]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the one that reports."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["near_ties"] = _counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """pytest-xdist: one of the processes has ended."""
    _told.extend(getattr(node, "workeroutput", {}).get("near_ties", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Near-ties are printed: a number that grows says something."""
    if counts := _counted() + _told:
        num_positions, num_ties = (sum(column) for column in zip(*counts, strict=True))
        terminalreporter.write_line(
            f"equal tokens: {num_positions} positions held against the oracle, {num_ties} near-ties"
        )
