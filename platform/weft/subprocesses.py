"""How processes of our own are started that read what strangers wrote."""

from __future__ import annotations

import os

# no credential, and nothing else that the work does not need
_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


def bare_environment() -> dict[str, str]:
    """The environment of such a process."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}
