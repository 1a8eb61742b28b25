"""The cookies of signing in: their names, and the attributes that keep others from them.

Over https names begin with `__Host-`: the browser then takes them from this host only, over TLS
only, for all paths, so that no sister host can plant one. Plain http, which is for this machine
alone, cannot have such names; there they go without, and without `Secure`.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

SESSION, CSRF, SIGN_IN = "weft_session", "weft_csrf", "weft_sign_in"


@dataclass(frozen=True, slots=True)
class Cookies:
    """Sets and reads our cookies; `is_secure` where people come over https."""

    is_secure: bool

    def name(self, cookie: str) -> str:
        return f"__Host-{cookie}" if self.is_secure else cookie

    def set(self, response: Response, cookie: str, value: str, max_age_s: int) -> None:
        """Pages may read the CSRF token, and nothing else."""
        response.set_cookie(
            self.name(cookie),
            value,
            max_age=max_age_s,
            path="/",
            secure=self.is_secure,
            httponly=cookie != CSRF,
            samesite="lax",
        )

    def clear(self, response: Response, *cookies: str) -> None:
        for cookie in cookies:
            self.set(response, cookie, "", 0)

    def read(self, request: Request, cookie: str) -> str | None:
        """The cookie's value; None where there is none, or more than one of its name."""
        return _read_once(request.headers.getlist("cookie"), self.name(cookie))


def _read_once(headers: list[str], name: str) -> str | None:
    # a second cookie of the name was planted with another path or domain: neither is trusted
    found = [
        value.strip()
        for header in headers
        for key, sep, value in (part.partition("=") for part in header.split(";"))
        if sep and key.strip() == name
    ]
    return found[0] if len(found) == 1 and found[0] else None
