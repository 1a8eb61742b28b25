"""What may be given to a key: nothing unknown, and nothing that the giver does not have itself."""

from __future__ import annotations

from collections.abc import Collection

from weft.errors import InvalidRequestError, PermissionDeniedError
from weft.tenancy.authority import Maker, permissions_of
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey
from weft.tenancy.principal import ALL_SCOPES, Permission
from weft.tenancy.roles import grantable_scopes


def check_hand_over(row: ApiKey | AdminKey | OperatorKey, actor: Maker) -> None:
    """A new secret of a key, or its return to life, is worth as much as making it."""
    may = permissions_of(actor)
    if isinstance(row, ApiKey):
        is_more = not frozenset(row.scopes) <= grantable_scopes(may)
    else:
        is_more = not frozenset(row.permissions) <= may
    if is_more:
        raise PermissionDeniedError("This key may do more than you: you cannot take it over.")


def check_scopes(scopes: Collection[str], actor: Maker, has: frozenset[str] = frozenset()) -> None:
    """`has`: what the key has already, which is not given anew."""
    unknown = sorted(set(scopes) - set(ALL_SCOPES))
    if unknown or not scopes:
        problem = f"'{unknown[0]}' is no scope" if unknown else "A key needs a scope"
        raise InvalidRequestError(f"{problem}; scopes are {', '.join(ALL_SCOPES)}.", param="scopes")
    beyond = sorted(set(scopes) - grantable_scopes(permissions_of(actor)) - has)
    if beyond:
        raise PermissionDeniedError(f"You may not give the scope '{beyond[0]}'.", param="scopes")


def checked_permissions(
    names: Collection[str] | None, may: frozenset[Permission], known: frozenset[Permission]
) -> list[Permission]:
    """`names`, or all of `may`; `known` are those that keys of the kind can have at all."""
    if names is None:
        if not may:
            raise PermissionDeniedError("You have no permission that such a key could have.")
        return sorted(may)
    unknown = sorted(set(names) - known)
    if unknown or not names:
        problem = f"'{unknown[0]}' is no permission here" if unknown else "A key needs a permission"
        raise InvalidRequestError(
            f"{problem}; permissions are {', '.join(sorted(known))}.", param="permissions"
        )
    beyond = sorted(set(names) - may)
    if beyond:
        raise PermissionDeniedError(
            f"You may not give the permission '{beyond[0]}'.", param="permissions"
        )
    return sorted(known & set(names))
