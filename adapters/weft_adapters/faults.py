"""What can be wrong with an upload, as sentences with a code.

Knows nothing of files, tensors or HTTP: every other module says what it found in these words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

MAX_SHOWN_CHARS = 160
MAX_FAULTS = 50


def shown(text: str) -> str:
    """`text` quoted, escaped to ASCII and cut, so that a hostile name is safe in a log."""
    cut = text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
    return json.dumps(cut)


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why an adapter is refused, or one warning about it.

    `code` is stable and for programs, `message` is a sentence for people, `tensor` is the name of
    the tensor it is about, if it is about one. Whatever a hostile key or value has put into the
    message, it is printable.
    """

    code: str
    message: str
    tensor: str | None = None

    def __post_init__(self) -> None:
        if not self.message.isprintable():
            escaped = (c if c.isprintable() else json.dumps(c)[1:-1] for c in self.message)
            object.__setattr__(self, "message", "".join(escaped))

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


class FaultList(list[Fault]):
    """The first faults of an adapter. Those after them are counted and not kept: a file whose every
    tensor is wrong costs no more memory than one with a few wrong ones."""

    def __init__(self) -> None:
        super().__init__()
        self.num_more = 0

    def append(self, fault: Fault) -> None:
        if len(self) < MAX_FAULTS:
            super().append(fault)
        else:
            self.num_more += 1

    def extend(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.append(fault)

    def __iadd__(self, faults: Iterable[Fault]) -> Self:  # type: ignore[override,misc]
        self.extend(faults)
        return self

    def listed(self) -> tuple[Fault, ...]:
        """All that is kept, and a last one that says how many are not."""
        if not self.num_more:
            return tuple(self)
        return (*self, Fault("more_faults", f"and {self.num_more} more faults"))
