"""What can be wrong with an upload, as sentences with a code.

Knows nothing of files, tensors or HTTP: every other module says what it found in these words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

MAX_SHOWN_CHARS = 160


def shown(text: str) -> str:
    """`text` quoted, escaped to ASCII and cut, so that a hostile name is safe in a log."""
    cut = text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
    return json.dumps(cut)


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why an adapter is refused, or one warning about it.

    `code` is stable and for programs, `message` is a sentence for people, `tensor` is the name of
    the tensor it is about, if it is about one.
    """

    code: str
    message: str
    tensor: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """The fault as JSON-able values; the tensor's name is cut like in messages."""
        name = None if self.tensor is None else self.tensor[:MAX_SHOWN_CHARS]
        return {"code": self.code, "message": self.message, "tensor": name}


class AdapterFaultError(ValueError):
    """An adapter that cannot be served; `faults` holds at least one reason."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        assert self.faults, "an adapter is refused for a reason"
        super().__init__(" ".join(fault.message for fault in self.faults[:10]))
