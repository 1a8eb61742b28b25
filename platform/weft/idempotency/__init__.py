"""`Idempotency-Key` on administrative requests: the same request again has one effect."""
