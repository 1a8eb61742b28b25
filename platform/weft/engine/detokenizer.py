"""From tokens to text as they come, and stop strings across token borders.

Text is handed out only when later tokens cannot change it: not while it ends in a broken UTF-8
sequence, and not while its end could be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
# a broken sequence at the end is at most three of four bytes; more is broken text for good
_MAX_HELD_TOKENS = 8


class Detokenizer:
    """One request's text so far.

    `decode` maps token ids to text, leaving special tokens out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._token_ids: list[int] = []
        self._prefix = 0  # tokens from here on are decoded anew for context
        self._read = 0  # tokens up to here are in `_text`
        self._text = ""
        self._given = 0
        self.stopped = False

    def add(self, token_id: int) -> None:
        """Take one token; sets `stopped` when the text now holds a stop string."""
        self._token_ids.append(token_id)
        old = self._decode(self._token_ids[self._prefix : self._read])
        new = self._decode(self._token_ids[self._prefix :])
        held = len(self._token_ids) - self._read
        if new.endswith(_BROKEN) and held < _MAX_HELD_TOKENS:
            return
        self._take(new[len(old) :])
        self._prefix, self._read = self._read, len(self._token_ids)

    def _take(self, text: str) -> None:
        if self.stopped:
            return
        # a match may begin in earlier text, but not before what was given out
        self._text += text
        cuts = [at for s in self._stop if (at := self._text.find(s, self._given)) >= 0]
        if cuts:
            self._text = self._text[: min(cuts)]
            self.stopped = True

    def finish(self) -> None:
        """No token follows: what was held back as broken is text after all."""
        old = self._decode(self._token_ids[self._prefix : self._read])
        new = self._decode(self._token_ids[self._prefix :])
        self._take(new[len(old) :])
        self._prefix = self._read = len(self._token_ids)

    def give(self, *, final: bool) -> str:
        """The text that is certain and was not given out yet."""
        end = len(self._text)
        if not final and not self.stopped:
            end -= max((_overlap(self._text[self._given :], s) for s in self._stop), default=0)
        text, self._given = self._text[self._given : end], end
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
