"""What an adapter is, and where it lives.

Format, validation, digest and store need numpy only, so that a gateway can check uploads without
torch; the page pool and the tiers need torch. Nothing here knows tenants, names or requests.
"""
