"""From tokens to text as they come, and stop strings across token borders.

Text is handed out only when later tokens cannot change it: not while it ends in a broken UTF-8
sequence, and not while its end could be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
# a sequence that may still be completed is at most three of four bytes; before it, broken is broken
_MAX_OPEN_CHARS = 3
# text that stays broken for so long is noise: decoding it anew for each token must end some time
_MAX_WINDOW_TOKENS = 128


class Detokenizer:
    """One request's text so far.

    `decode` maps token ids to text, leaving special tokens out. Stop strings that are complete with
    the first `min_tokens` tokens do not count, as in vLLM.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], min_tokens: int = 0
    ) -> None:
        self._decode = decode
        self._min_tokens = min_tokens
        self._stop = tuple(stop)
        self._token_ids: list[int] = []
        self._prefix = 0  # tokens from here on are decoded anew for context
        self._read = 0  # tokens up to here decoded to whole characters
        self._taken = 0  # characters of the tokens from `_prefix` on that are in `_text`
        self._text = ""
        self._given = 0
        self._exempt = 0  # characters in which a stop string does not count
        self.stopped = False

    def add(self, token_id: int) -> None:
        """Take one token; sets `stopped` when the text now holds a stop string."""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids[self._prefix :])
        is_noise = len(self._token_ids) - self._prefix >= _MAX_WINDOW_TOKENS
        num_whole = len(text if is_noise else text.rstrip(_BROKEN))
        self._take(text, max(num_whole, len(text) - _MAX_OPEN_CHARS))
        if num_whole == len(text):
            self._prefix, self._read = self._read, len(self._token_ids)
            self._taken = len(self._decode(self._token_ids[self._prefix : self._read]))

    def _take(self, text: str, end: int) -> None:
        """Take the characters of the window up to `end` that are not in `_text` yet."""
        if self.stopped or end <= self._taken:
            return
        self._text += text[self._taken : end]
        self._taken = end
        if len(self._token_ids) <= self._min_tokens:
            self._exempt = len(self._text)
            return
        # a match may begin in earlier text, but not before what was given out
        cuts = [at for s in self._stop if (at := self._text.find(s, self._first(s))) >= 0]
        if cuts:
            self._text = self._text[: min(cuts)]
            self.stopped = True

    def _first(self, stop: str) -> int:
        """Where a match of `stop` may begin: after `_exempt` it must at least end."""
        return max(self._given, self._exempt - len(stop) + 1)

    def finish(self) -> None:
        """No token follows: what was held back as broken is text after all."""
        text = self._decode(self._token_ids[self._prefix :])
        self._take(text, len(text))

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
