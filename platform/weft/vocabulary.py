"""What each token of a tokenizer is in bytes.

Text of single tokens cannot be had by decoding them: a byte of a longer character has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`token_bytes` by token id, empty where an id has no token; control tokens have the bytes of
    their names. `is_exact` is False where the bytes are only those of the decoded text, so that
    those of consecutive tokens may not make up the text."""

    token_bytes: tuple[bytes, ...]
    control_ids: frozenset[int]
    is_exact: bool

    def extended(self, added: Mapping[int, bytes], control_ids: Collection[int]) -> Vocabulary:
        """With tokens of an adapter's own; of `added` those in `control_ids` are control tokens."""
        table = list(self.token_bytes)
        for token_id, data in added.items():
            table += [b""] * (token_id + 1 - len(table))
            table[token_id] = data
        return Vocabulary(tuple(table), self.control_ids | set(control_ids), self.is_exact)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Read it off the tokenizer's decoder: byte-level, or SentencePiece with byte fallback."""
        kinds = set(_kinds(json.loads(tokenizer.to_str()).get("decoder")))
        added = tokenizer.get_added_tokens_decoder()
        tokens = [""] * tokenizer.get_vocab_size(with_added_tokens=True)
        for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
            tokens += [""] * (token_id + 1 - len(tokens))  # ids may have gaps
            tokens[token_id] = token
        is_exact = bool(kinds & {"ByteLevel", "ByteFallback", "Metaspace"})
        alphabet = _byte_alphabet() if "ByteLevel" in kinds else None

        def bytes_of(token_id: int, token: str) -> bytes:
            if token_id in added:
                return added[token_id].content.encode()
            if not is_exact:
                return tokenizer.decode([token_id], skip_special_tokens=False).encode()
            return _byte_level(token, alphabet) if alphabet else _sentencepiece(token)

        table = tuple(bytes_of(i, token) for i, token in enumerate(tokens))
        return cls(table, frozenset(i for i, token in added.items() if token.special), is_exact)


def _kinds(decoder: Mapping[str, Any] | None) -> Iterator[str]:
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _kinds(part)


def _byte_level(token: str, alphabet: Mapping[str, int]) -> bytes:
    return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in token)


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: itself where it prints, else the next free one from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in prints}
    others = [byte for byte in range(256) if byte not in prints]
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}
