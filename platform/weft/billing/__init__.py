"""Documents of billing: periods, invoices, exports. What was used is `weft.usage`'s."""
