"""Signing in by a provider: the browser leaves for its page, and comes back with a code."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import RedirectResponse

from weft.errors import InvalidRequestError, NotFoundError
from weft.tenancy.auth import public
from weft.tenancy.client import client_of as sender_of
from weft.tenancy.cookies import SIGN_IN
from weft.tenancy.oidc_admission import admit, read_claims
from weft.tenancy.oidc_flow import FLOW_TTL_S, ProviderSignInError
from weft.tenancy.oidc_providers import client_of, get_provider
from weft.tenancy.oidc_repository import OidcRepository
from weft.tenancy.sign_in import SignIn, SignInDep, port_of

router = APIRouter(prefix="/auth/v1/oidc", tags=["sign-in"], dependencies=[Depends(public)])
_REDIRECTS: dict[int | str, dict[str, object]] = {
    303: {"description": "Elsewhere", "headers": {"location": {"schema": {"type": "string"}}}}
}


@router.get("/start", status_code=303, response_class=RedirectResponse, responses=_REDIRECTS)
async def start(
    request: Request,
    signing_in: SignInDep,
    domain: Annotated[str, Query(max_length=253)],
    return_to: Annotated[str, Query(max_length=512)] = "/",
) -> RedirectResponse:
    """Send the browser to the provider of an address's domain. Afterwards it is at `return_to`."""
    check_return_to(return_to)
    async with signing_in.database.reading() as session:
        found = await OidcRepository(session).find_domain(domain.strip().lower())
        if found is None:
            raise NotFoundError("People of this domain do not sign in by a provider.")
        provider = await get_provider(session, found[0].provider_id)
    client = client_of(provider, signing_in.encryption_key)
    uri = redirect_uri(signing_in, request, provider.id)
    started = await signing_in.oidc.start(client, uri, return_to)
    answer = RedirectResponse(started.url, 303)
    signing_in.cookies.set(answer, SIGN_IN, started.cookie, FLOW_TTL_S)
    return answer


@router.get(
    "/{provider_id}/callback", status_code=303, response_class=RedirectResponse,
    responses=_REDIRECTS,
)  # fmt: skip
async def callback(provider_id: str, request: Request, signing_in: SignInDep) -> RedirectResponse:
    """Where the provider sends the browser back to. Makes the session."""
    async with signing_in.database.reading() as session:
        provider = await OidcRepository(session).find_provider(provider_id)
    if provider is None:
        raise ProviderSignInError  # as for any other address that nobody was sent to
    finished = await signing_in.oidc.finish(
        client_of(provider, signing_in.encryption_key),
        redirect_uri(signing_in, request, provider.id),
        dict(request.query_params),
        signing_in.cookies.read(request, SIGN_IN),
    )
    vouched = read_claims(provider, finished.claims)
    async with signing_in.database.writing() as session:
        made = await admit(
            session,
            await get_provider(session, provider_id),  # as it is now
            vouched,
            sender_of(request),
            signing_in.policy,
            replaced_hash=signing_in.replaced_hash(request),
        )
    answer = RedirectResponse(_base(signing_in, request) + finished.return_to, 303)
    signing_in.cookies.clear(answer, SIGN_IN)
    signing_in.give(answer, made)
    return answer


def redirect_uri(signing_in: SignIn, request: Request, provider_id: str) -> str:
    """What is registered at the provider: one for each, so that none answers for another."""
    return f"{_base(signing_in, request)}/auth/v1/oidc/{provider_id}/callback"


def _base(signing_in: SignIn, request: Request) -> str:
    return signing_in.origins.base(port_of(request))


def check_return_to(path: str) -> None:
    """InvalidRequestError unless it is a path of ours: anything else would make our address one
    that leads people to others'."""
    # browsers read "\" as "/", and drop tabs and line breaks: "/\t/evil.example" would be a host
    is_plain = path.isascii() and path.isprintable() and "\\" not in path
    if not path.startswith("/") or path.startswith("//") or not is_plain:
        raise InvalidRequestError("'return_to' must be a path, as '/usage'.", param="return_to")
