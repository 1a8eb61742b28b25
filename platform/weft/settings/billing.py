"""Where documents of billing are written."""

from __future__ import annotations

from dataclasses import dataclass

from weft.settings.fields import Settings, setting


@dataclass(frozen=True, kw_only=True)
class BillingSettings(Settings):
    """Exports go to `export_store` ("s3://bucket/prefix", at `s3_endpoint_url` if it is not
    Amazon's, or a folder); None: to `exports` in the data folder."""

    export_store: str | None = setting(
        None, "Where exports go: s3://bucket/prefix or a folder. Default: exports/ in --data."
    )
