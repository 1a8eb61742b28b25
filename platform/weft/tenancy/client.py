"""Where a request came from."""

from __future__ import annotations

from fastapi import Request

from weft.tenancy.principal import Client


def client_of(request: Request) -> Client:
    """The network's word for the address, the client's own for what it runs."""
    address = None if request.client is None else request.client.host
    return Client(address, request.headers.get("user-agent"))
