"""Signing in and out: what a person does about their own account. Sessions come in cookies."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from weft.audit import Target, record
from weft.db.dependencies import ReadSession, WriteSession
from weft.errors import NotFoundError, PermissionDeniedError
from weft.tenancy.accounts import choose_tenant
from weft.tenancy.acting import person_actor
from weft.tenancy.auth import public, signed_in
from weft.tenancy.client import client_of
from weft.tenancy.cookies import CSRF
from weft.tenancy.csrf import create_csrf_token, is_csrf_token
from weft.tenancy.roles import PERMISSIONS
from weft.tenancy.schemas import Deleted
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.session_schemas import (
    Done,
    InviteAccept,
    Joined,
    PasswordChange,
    PasswordResetBody,
    SessionInfo,
    SessionList,
    SignInBody,
    TenantChoice,
    TenantOfUser,
    UserInfo,
    session_to_wire,
)
from weft.tenancy.sessions import NewSession, SignedIn, find_signed_in, renew_session
from weft.tenancy.sign_in import SignInDep
from weft.tenancy.user_repository import UserRepository

router = APIRouter(prefix="/auth/v1", tags=["sign-in"])
Person = Annotated[SignedIn, Depends(signed_in)]


@router.post("/sign-in", dependencies=[Depends(public)])
async def sign_in(
    body: SignInBody, request: Request, response: Response, signing_in: SignInDep
) -> SessionInfo:
    """Sign in with a password. Wrong ones and unknown addresses get the same answer."""
    signing_in.check_origin(request)
    made = await signing_in.accounts.sign_in(
        body.email,
        body.password,
        client_of(request),
        tenant=body.tenant,
        replaced_hash=signing_in.replaced_hash(request),
    )
    return await _given(signing_in, response, made)


@router.post("/sign-out")
async def sign_out(
    who: Person, request: Request, response: Response, signing_in: SignInDep, session: WriteSession
) -> Done:
    """End this session."""
    await SessionRepository(session).close(who.secret_hash)
    actor = person_actor(who.user_id, who.tenant_id, client_of(request))
    target = Target(who.user_id, who.tenant_id)
    await record(session, actor, "logout.succeeded", target, {"session": who.session_id})
    signing_in.take(response)
    return Done()


@router.post("/sign-out-everywhere")
async def sign_out_everywhere(
    who: Person, request: Request, response: Response, signing_in: SignInDep, session: WriteSession
) -> Done:
    """End all of the person's sessions, this one too."""
    await SessionRepository(session).close_all_of(who.user_id)
    actor = person_actor(who.user_id, who.tenant_id, client_of(request))
    target = Target(who.user_id, who.tenant_id)
    await record(session, actor, "logout.succeeded", target, {"session": "all"})
    signing_in.take(response)
    return Done()


@router.get("/session")
async def get_session(
    who: Person, request: Request, response: Response, signing_in: SignInDep, session: ReadSession
) -> SessionInfo:
    """Who is signed in. A page that has no token, or another session's, gets one here."""
    token = signing_in.cookies.read(request, CSRF)
    key = signing_in.csrf_key
    if token is None or not is_csrf_token(key, who.secret_hash, token, token):
        token = create_csrf_token(key, who.secret_hash)
        signing_in.cookies.set(response, CSRF, token, who.expires_at - who.created_at)
    return await _describe(UserRepository(session), who, token)


@router.post("/session")
async def choose(
    who: Person,
    body: TenantChoice,
    request: Request,
    response: Response,
    signing_in: SignInDep,
    session: WriteSession,
) -> SessionInfo:
    """Act for another of one's tenants, or as an operator. The session gets a new id."""
    if who.provider_id is not None:
        raise PermissionDeniedError("Who signed in by a provider acts for its tenant only.")
    user = await UserRepository(session).find_user(who.user_id)
    assert user is not None, "people are closed, never deleted"
    if body.tenant is None and not user.is_operator:
        raise PermissionDeniedError("You are no operator.")
    tenant_id = await choose_tenant(session, user, body.tenant)
    client = client_of(request)
    made = await renew_session(session, who, client, tenant_id=tenant_id)
    await record(
        session,
        person_actor(user.id, tenant_id, client),
        "session.tenant_chosen",
        Target(user.id, tenant_id),
        {"from": who.session_id, "to": made.row.id},
    )
    renewed = await find_signed_in(session, made.secret, signing_in.policy)
    assert renewed is not None, "it was made now"
    token = signing_in.give(response, made)
    return await _describe(UserRepository(session), renewed, token)


@router.get("/sessions")
async def list_sessions(who: Person, session: ReadSession) -> SessionList:
    """Everywhere that the person is signed in by the same way: whoever has the password is not
    shown where a provider's person works from, nor the other way round."""
    rows = await SessionRepository(session).list_of(who.user_id)
    same = [row for row in rows if row.provider_id == who.provider_id]
    return SessionList(data=[session_to_wire(row, who.secret_hash) for row in same])


@router.delete("/sessions/{session_id}")
async def close_session(
    who: Person, session_id: str, request: Request, session: WriteSession
) -> Deleted:
    """End one of the person's sessions."""
    row = await SessionRepository(session).close_one_of(who.user_id, who.provider_id, session_id)
    if row is None:
        raise NotFoundError(f"No session '{session_id}' exists.")
    await session.flush()
    actor = person_actor(who.user_id, who.tenant_id, client_of(request))
    target = Target(who.user_id, row.tenant_id)
    await record(session, actor, "logout.succeeded", target, {"session": row.id})
    return Deleted(id=row.id, object="session.deleted")


@router.post("/password")
async def change_password(
    who: Person, body: PasswordChange, request: Request, response: Response, signing_in: SignInDep
) -> SessionInfo:
    """Change one's password. All other sessions end, this one gets a new id."""
    made = await signing_in.accounts.change_password(
        who, body.current_password, body.new_password, client_of(request)
    )
    return await _given(signing_in, response, made)


@router.post("/password:reset", dependencies=[Depends(public)])
async def reset_password(body: PasswordResetBody, request: Request, signing_in: SignInDep) -> Done:
    """Set a password by the one-time token that an operator made. Sign in with it afterwards."""
    signing_in.check_origin(request)
    await signing_in.accounts.reset_password(body.token, body.new_password, client_of(request))
    return Done()


@router.post("/invites:accept", dependencies=[Depends(public)])
async def accept_invite(body: InviteAccept, request: Request, signing_in: SignInDep) -> Joined:
    """Become a member by an invite. Sign in afterwards."""
    signing_in.check_origin(request)
    client = client_of(request)
    tenant_id = await signing_in.invites.accept(body.token, body.name, body.password, client)
    return Joined(tenant_id=tenant_id)


async def _given(signing_in: SignInDep, response: Response, made: NewSession) -> SessionInfo:
    async with signing_in.database.reading() as session:
        who = await find_signed_in(session, made.secret, signing_in.policy)
        assert who is not None, "it was made now"
        token = signing_in.give(response, made)
        return await _describe(UserRepository(session), who, token)


async def _describe(repository: UserRepository, who: SignedIn, csrf_token: str) -> SessionInfo:
    rows = await repository.list_tenants_of(who.user_id)
    # by a provider there is one tenant to act for: its own
    tenants = [
        TenantOfUser(id=tenant.id, name=tenant.name, role=membership.role)
        for membership, tenant in rows
        if membership.is_open_to(who.provider_id)
        and (who.provider_id is None or tenant.id == who.tenant_id)
    ]
    return SessionInfo(
        id=who.session_id,
        user=UserInfo(id=who.user_id, email=who.email, name=who.name, is_operator=who.is_operator),
        tenant_id=who.tenant_id,
        role=who.role,
        permissions=[] if who.role is None else sorted(PERMISSIONS[who.role]),
        tenants=tenants,
        provider_id=who.provider_id,
        created_at=who.created_at,
        expires_at=who.expires_at,
        csrf_token=csrf_token,
    )
