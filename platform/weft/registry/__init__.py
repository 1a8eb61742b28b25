"""Adapters, their immutable versions and movable aliases; names become digests here."""
