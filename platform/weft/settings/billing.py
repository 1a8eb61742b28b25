"""Where documents of billing are written, and whether usage goes to Stripe."""

from __future__ import annotations

from dataclasses import dataclass

from weft.settings.fields import Settings, setting


@dataclass(frozen=True, kw_only=True)
class BillingSettings(Settings):
    """Exports go to `export_store` ("s3://bucket/prefix", at `s3_endpoint_url` if it is not
    Amazon's, or a folder); None: to `exports` in the data folder.

    With `send_to_stripe`, the server sends usage to Stripe (or what is at `stripe_url`) by itself.
    """

    export_store: str | None = setting(
        None, "Where exports go: s3://bucket/prefix or a folder. Default: exports/ in --data."
    )
    send_to_stripe: bool = setting(
        False,
        "Send each hour's usage to Stripe when it is over, with the key in WEFT_STRIPE_API_KEY, "
        "for tenants that `weft billing customer` has named.",
    )
    stripe_url: str | None = setting(None, "Another server than Stripe's, for tests.")
    stripe_api_key: str | None = setting(None, environment="WEFT_STRIPE_API_KEY")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.send_to_stripe and not self.stripe_api_key:
            raise ValueError("send_to_stripe needs Stripe's secret key in WEFT_STRIPE_API_KEY")
