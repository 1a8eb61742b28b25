"""The engine: scheduler, KV blocks, the decoder and the thread that steps it.

It talks to the rest of Weft by `weft.messages` only and imports neither the web nor the database.
"""
