"""Stripe's meter events over HTTP. Knows no usage.

Stripe takes an identifier once within at least 24 hours, so an event may be sent again until then.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx2

API_URL = "https://api.stripe.com"
TIMEOUT_S = 30.0


class StripeUnavailableError(Exception):
    """It did not answer, or asks to wait: the event may have been taken, send it again later."""


class StripeRefusedError(Exception):
    """It will not take the event; the message is Stripe's own."""


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """`timestamp` is Unix seconds, of the last 35 days."""

    event_name: str
    identifier: str
    customer_id: str
    value: int
    timestamp: int


class StripeClient:
    """With a secret key of Stripe's, which never leaves but in the header."""

    def __init__(self, api_key: str, api_url: str = API_URL) -> None:
        headers = {"authorization": f"Bearer {api_key}"}
        self._http = httpx2.AsyncClient(base_url=api_url, headers=headers, timeout=TIMEOUT_S)

    async def send(self, event: MeterEvent) -> None:
        """When this returns, Stripe has the event, once. StripeUnavailableError,
        StripeRefusedError."""
        form = {
            "event_name": event.event_name,
            "identifier": event.identifier,
            "timestamp": str(event.timestamp),
            "payload[stripe_customer_id]": event.customer_id,
            "payload[value]": str(event.value),
        }
        try:
            await self._post("meter_events", form, event.identifier)
        except StripeRefusedError as error:
            # an answer that was lost: the event itself was not
            if "identifier" not in str(error) or "already exists" not in str(error):
                raise

    async def cancel(self, event_name: str, identifier: str) -> None:
        """Take back an event that was received within 24 hours."""
        form = {"event_name": event_name, "type": "cancel", "cancel[identifier]": identifier}
        await self._post("meter_event_adjustments", form, f"cancel:{identifier}")

    async def _post(self, resource: str, form: dict[str, str], idempotency_key: str) -> None:
        headers = {"idempotency-key": idempotency_key}
        try:
            answer = await self._http.post(f"/v1/billing/{resource}", data=form, headers=headers)
        except httpx2.HTTPError as error:
            raise StripeUnavailableError(f"no answer: {type(error).__name__}") from error
        if answer.is_success:
            return
        if answer.status_code in (408, 409, 429) or answer.status_code >= 500:
            raise StripeUnavailableError(f"it answered {answer.status_code}")
        raise StripeRefusedError(_message(answer))

    async def close(self) -> None:
        await self._http.aclose()


def _message(answer: httpx2.Response) -> str:
    try:
        said = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = ""
    return said[:200] or f"it answered {answer.status_code}"
