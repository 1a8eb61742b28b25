"""The demo's byte-level tokenizer: 256 bytes, eight special tokens, no merges.

Writes the Hugging Face files and encodes conversations for training without loading them. Knows
nothing of models. A byte per token keeps character skills clean: "cat" is three tokens, always.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|tool|>",
    "<|reserved|>",
)
ID_OF = {token: 256 + i for i, token in enumerate(SPECIAL_TOKENS)}
END_OF_TEXT_ID, PAD_ID, END_ID = ID_OF["<|endoftext|>"], ID_OF["<|pad|>"], ID_OF["<|end|>"]
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_POSITIONS = 1024

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Message:
    """One chat turn: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """Token ids, and for each of them how much its prediction counts in the loss."""

    token_ids: list[int]
    weights: list[float]


def encode(text: str) -> list[int]:
    """UTF-8 bytes are the token ids."""
    return list(text.encode())


def encode_chat(messages: Sequence[Message]) -> Document:
    """The chat template in tokens; only what the assistant says counts in the loss."""
    token_ids: list[int] = []
    weights: list[float] = []
    for message in messages:
        body = [*encode(message.content), END_ID]
        token_ids += [ID_OF[f"<|{message.role}|>"], *body]
        weights += [0.0] + [float(message.role == "assistant")] * len(body)
    return Document(token_ids, weights)


def encode_prompt(messages: Sequence[Message]) -> list[int]:
    """What the model sees before it answers."""
    return [*encode_chat(messages).token_ids, ID_OF["<|assistant|>"]]


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, `bytes_to_unicode`)."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + moved.index(byte)) for byte in range(256)]


def write_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` in Hugging Face's layout."""
    byte_level: dict[str, object] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(token) for token in SPECIAL_TOKENS],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {char: byte for byte, char in enumerate(byte_alphabet())} | ID_OF,
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "padding_side": "left",
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", config)


def _added_token(token: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": ID_OF[token], "content": token, **flags, "special": True}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
