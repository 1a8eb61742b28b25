"""A small OpenID provider on loopback: discovery, authorization codes with PKCE, JWKS.

It is strict where a provider must be (a code is good once, for its client, redirect and verifier),
and says of the person, and signs, whatever the test wants.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID, CLIENT_SECRET = "weft", "the client's secret"


def create_rsa_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})


class Provider:
    """What the provider knows and how it answers; tests change it as they go."""

    def __init__(self, url: str, key: RSAKey) -> None:
        self.url = url
        self.keys = [key]
        self.signer = key
        self.person: dict[str, Any] = {}
        self.claims: dict[str, Any] = {}  # instead of what a token of this provider says
        self.configuration: dict[str, Any] = {}  # instead of what its configuration says
        self.header: dict[str, Any] = {"alg": "RS256", "kid": key.kid}
        self.id_token: str | None = None  # instead of one made for the code
        self.refusal: str | None = None
        self.num_requests: dict[str, int] = {}
        self._codes: dict[str, dict[str, str]] = {}

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            **self.configuration,
        }

    def jwks(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False) for key in self.keys]}

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser goes: the person signs in here without more ado."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        if self.refusal:
            answer = {"error": self.refusal, "state": asked["state"]}
        else:
            code = secrets.token_urlsafe(16)
            self._codes[code] = asked
            answer = {"code": code, "state": asked["state"]}
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        known = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        if tuple(map(unquote, known.split(":", 1))) != (CLIENT_ID, CLIENT_SECRET):
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge:
            return 400, {"error": "invalid_grant"}
        if asked["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        id_token = self.id_token or self.sign(asked["nonce"])
        return 200, {"access_token": "at", "token_type": "Bearer", "id_token": id_token}

    def sign(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce,
            **self.person, **self.claims,
        }  # fmt: skip
        left = {key: value for key, value in claims.items() if value is not None}
        return jwt.encode(self.header, left, self.signer)


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        self._count(path)
        if path == "/authorize":
            self.send_response(302)
            self.send_header("location", self.provider.authorize(_single(query)))
            self.send_header("content-length", "0")
            self.end_headers()
        elif path == "/.well-known/openid-configuration":
            self._answer(200, self.provider.metadata())
        elif path == "/jwks":
            self._answer(200, self.provider.jwks())
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        self._count(self.path)
        form = _single(self.rfile.read(int(self.headers["content-length"])).decode())
        self._answer(*self.provider.token(form, self.headers.get("authorization", "")))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests are told by their asserts."""

    def _count(self, path: str) -> None:
        counts = self.provider.num_requests
        counts[path] = counts.get(path, 0) + 1

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def _single(query: str) -> dict[str, str]:
    return {key: value for key, (value,) in parse_qs(query, strict_parsing=True).items()}


@contextmanager
def running_provider(key: RSAKey) -> Iterator[Provider]:
    """A provider that listens on a free port until the end."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        provider = Provider(f"http://127.0.0.1:{server.server_port}", key)
        Handler.provider = provider
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
