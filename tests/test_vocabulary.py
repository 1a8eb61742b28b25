"""Bytes of single tokens, for the kinds of tokenizers that bases have."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from weft.demo import BASE_DIR
from weft.tokenizer import BaseTokenizer
from weft.vocabulary import Vocabulary

TEXT = "caf\u00e9 \U0001f600\n\u4e2d tail"


def test_byte_level_tokens_make_up_the_text() -> None:
    tokenizer = BaseTokenizer.from_dir(BASE_DIR)
    vocabulary = tokenizer.vocabulary
    assert vocabulary.is_exact
    assert len(vocabulary.token_bytes) == tokenizer.vocab_size
    assert b"".join(vocabulary.token_bytes[i] for i in tokenizer.encode(TEXT)) == TEXT.encode()
    assert {vocabulary.token_bytes[i] for i in vocabulary.control_ids} >= {b"<|end|>", b"<|user|>"}


def test_sentencepiece_tokens_with_byte_fallback_make_up_the_text() -> None:
    pieces = {"<unk>": 0, "\u2581": 1, "c": 2, "a": 3, "f": 4, "\u00e9": 5, "t": 6, "il": 7}
    pieces |= {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    tokenizer = Tokenizer(
        models.BPE(vocab=pieces, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.is_exact
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert b"".join(vocabulary.token_bytes[i] for i in ids) == TEXT.encode()


def test_added_tokens_are_their_own_text_and_gaps_are_empty() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 5}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("new \u00e9", special=False)])
    tokenizer.add_special_tokens(["<|end|>"])
    vocabulary = Vocabulary.of(tokenizer)
    by_id = dict(enumerate(vocabulary.token_bytes))
    assert (by_id[0], by_id[1], by_id[5]) == (b"a", b"", b"b")
    added = tokenizer.token_to_id("new \u00e9")
    assert added is not None
    assert by_id[added] == "new \u00e9".encode()
    assert vocabulary.control_ids == {tokenizer.token_to_id("<|end|>")}


def test_other_tokenizers_are_not_exact() -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"one": 0, "two": 1}, unk_token="one"))
    vocabulary = Vocabulary.of(tokenizer)
    assert not vocabulary.is_exact
    assert vocabulary.token_bytes == (b"one", b"two")
