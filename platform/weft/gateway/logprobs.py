"""Log-probabilities in OpenAI's two shapes: chat's `content` and the legacy lists."""

from __future__ import annotations

from collections.abc import Sequence

from weft.messages import TokenLogprobs
from weft.vocabulary import Vocabulary

Wire = dict[str, object]


class LogprobsFormat:
    """Shows token ids as text and bytes. A token that is part of a character has no text of its
    own: chat shows U+FFFD and has the bytes beside it, the legacy lists show `bytes:\\x..`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def _bytes(self, token_id: int) -> bytes:
        table = self._vocabulary.token_bytes
        return table[token_id] if token_id < len(table) else b""  # the model may have more ids

    def _text(self, token_id: int) -> str:
        data = self._bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def chat(self, entries: Sequence[TokenLogprobs]) -> Wire:
        """Chat's `choices[].logprobs`."""
        content = [
            {
                **self._chat_token(entry.token_id, entry.logprob),
                "top_logprobs": [self._chat_token(*pair) for pair in entry.top],
            }
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _chat_token(self, token_id: int, logprob: float) -> Wire:
        data = self._bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def legacy(self, entries: Sequence[TokenLogprobs], offset: int) -> Wire:
        """The completions route's `choices[].logprobs`; the first token begins at `offset` of the
        text. As OpenAI says, the sampled token is always among its alternatives."""
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += self.num_chars(entry)
        return {
            "tokens": [self._text(entry.token_id) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {self._text(t): p for t, p in (*entry.top, (entry.token_id, entry.logprob))}
                for entry in entries
            ],
            "text_offset": offsets,
        }

    def num_chars(self, entry: TokenLogprobs) -> int:
        """How many characters of the text begin in this token; control tokens are not shown."""
        if entry.token_id in self._vocabulary.control_ids:
            return 0
        return sum(byte & 0xC0 != 0x80 for byte in self._bytes(entry.token_id))
