"""schemathesis over the OpenAPI document, as two tenants and an operator: it follows the ids that
answers give into other requests. Nothing may answer 5xx, or otherwise than the document says."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.gateway.site import Site
from tests.security.world import Tenant, create_tenant

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def actors(site: Site) -> Iterator[list[Tenant]]:
    pair = [create_tenant(site, "ann"), create_tenant(site, "bob")]
    yield pair
    for tenant in pair:
        tenant.browser.close()


@dataclass
class Explored:
    """How many requests were made, how many of them did something, and what was wrong."""

    num_calls: int = 0
    num_done: int = 0
    faults: dict[str, str] = field(default_factory=dict)


def explore(site: Site, actors: list[Tenant], num_calls: int, first_seed: int = 0) -> Explored:
    """Make at least so many requests, by state machines that are the same each time."""
    document = site.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    kept = {actor.name for actor in actors} | {actor.id for actor in actors}
    turns = itertools.cycle(range(7))
    explored = Explored()

    class Workflow(schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            explored.num_calls += 1
            for name, value in case.path_parameters.items():
                if case.method == "DELETE" and value in kept:  # who would be left to ask?
                    case.path_parameters[name] = "nobody"
            case.headers = {**(case.headers or {}), **_credentials(site, actors, case, next(turns))}

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": site.url, "allow_redirects": False}

        def validate_response(self, response: Any, case: Any, **kwargs: Any) -> None:
            explored.num_done += response.status_code < 300
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as group:
                # kept, not raised: hypothesis would repeat the steps, and the server has gone on
                for failure in group.exceptions:
                    where = f"{case.method} {case.operation.path}: {failure}"
                    explored.faults.setdefault(where.split("\n")[0], str(group))

    for seed in itertools.count(first_seed):
        Workflow._hypothesis_internal_use_seed = seed
        # what is there depends on the requests of earlier machines, which hypothesis notices
        with contextlib.suppress(Flaky):
            Workflow.run(settings=_SETTINGS)
        if explored.num_calls >= num_calls:
            break
    return explored


_SETTINGS = settings(
    max_examples=20,
    stateful_step_count=12,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def _credentials(site: Site, actors: list[Tenant], case: Any, turn: int) -> dict[str, str]:
    """Mostly of whom the route is for, at times of another, or none."""
    if turn == 6:
        return {}
    actor = actors[turn % 2]
    demanded = case.operation.definition.raw.get("security", [])
    path = case.operation.path
    is_operators = path.startswith("/admin/")
    if is_operators and turn < 5:
        return {"authorization": f"Bearer {site.operator_key}"}
    is_persons = not any("key" in each for each in demanded) or path.startswith("/v1/organization")
    return actor.headers("admin" if is_persons and turn < 5 else "key")


def test_a_slice_of_the_api_keeps_its_word(site: Site, actors: list[Tenant]) -> None:
    check(explore(site, actors, num_calls=150))


@pytest.mark.verify
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(20))
def test_the_api_keeps_its_word_in_20_000_calls(
    site: Site, actors: list[Tenant], part: int
) -> None:
    check(explore(site, actors, num_calls=1_000, first_seed=1_000 * part + 1))


def check(explored: Explored) -> None:
    assert not explored.faults, "\n\n".join(explored.faults.values())
    # most of what is made up is refused; a slice in which all is would hold nothing
    assert explored.num_done > explored.num_calls / 20
