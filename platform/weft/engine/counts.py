"""Which tokens a sequence holds and how often. Plain Python, no tensors."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class TokenCounts:
    """The distinct tokens of prompt and answer in `ids`, and how often the answer has each in
    `counts`; both are int64 and grow with the sequence, so that a step costs its new tokens."""

    def __init__(self) -> None:
        self.ids = array("q")
        self.counts = array("q")
        self._place: dict[int, int] = {}
        self._num_taken = 0

    def take(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Count the tokens that have come since the last call."""
        for position in range(self._num_taken, len(token_ids)):
            token = token_ids[position]
            place = self._place.get(token)
            if place is None:
                place = self._place[token] = len(self.ids)
                self.ids.append(token)
                self.counts.append(0)
            if position >= num_prompt_tokens:
                self.counts[place] += 1
        self._num_taken = len(token_ids)
