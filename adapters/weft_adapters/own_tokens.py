"""What an adapter has of a tokenizer of its own: added tokens, names of special ones, a template.

Only what differs from the base's is kept, in the adapter's config, under a key of ours. So it is
stored, verified and removed with it, and a thousand adapters do not hold a thousand tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONFIG_KEY = "weft_tokenizer"
SPECIAL_NAMES = (
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token",
)  # fmt: skip

# what may come with an adapter, and how large
TOKENIZER_FILES = {
    "tokenizer.json": 64 * 2**20,
    "tokenizer_config.json": 4 * 2**20,
    "special_tokens_map.json": 2**20,
    "chat_template.jinja": 2**18,
}

MAX_TOKENS = 4096
MAX_TOKEN_CHARS = 256
MAX_TEMPLATE_CHARS = 256 * 1024


@dataclass(frozen=True, slots=True)
class OwnToken:
    """`is_special`: a control token, which is no part of any text. lstrip, rstrip: it takes the
    white space before it, or behind it, with it."""

    token_id: int
    content: str
    is_special: bool
    lstrip: bool = False
    rstrip: bool = False

    def to_dict(self) -> dict[str, object]:
        return {
            "id": self.token_id,
            "content": self.content,
            "special": self.is_special,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
        }


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """tokens: that the base's tokenizer does not have; special_names: special tokens by their roles
    ("eos_token") where they are others than the base's; chat_template: Jinja, None for the base's.
    """

    tokens: tuple[OwnToken, ...] = ()
    special_names: Mapping[str, str] | None = None
    chat_template: str | None = None

    def to_dict(self) -> dict[str, object]:
        return {
            "added_tokens": [token.to_dict() for token in self.tokens],
            "special_tokens": dict(self.special_names or {}),
            "chat_template": self.chat_template,
        }

    def __bool__(self) -> bool:
        return bool(self.tokens or self.special_names or self.chat_template)


def read_own_tokens(value: object) -> OwnTokens:
    """From parsed JSON; ValueError, a sentence, for anything else."""
    if not isinstance(value, dict):
        raise ValueError("It must be an object.")
    unknown = set(value) - {"added_tokens", "special_tokens", "chat_template"}
    if unknown:
        raise ValueError(f"It has the unknown key {min(unknown)[:100]!r}.")
    entries = value.get("added_tokens", [])
    if not isinstance(entries, list) or len(entries) > MAX_TOKENS:
        raise ValueError(f"added_tokens must be a list of at most {MAX_TOKENS} tokens.")
    tokens = tuple(_read_token(entry) for entry in entries)
    for what, parts in (
        ("id", [token.token_id for token in tokens]),
        ("content", [token.content for token in tokens]),
    ):
        if len(set(parts)) < len(parts):
            raise ValueError(f"Two of added_tokens have the same {what}.")
    template = value.get("chat_template")
    if template is not None and (
        not isinstance(template, str) or not 0 < len(template) <= MAX_TEMPLATE_CHARS
    ):
        raise ValueError(f"chat_template must be text of at most {MAX_TEMPLATE_CHARS} characters.")
    return OwnTokens(tokens, _read_names(value.get("special_tokens", {})), template)


def _read_names(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not set(value) <= set(SPECIAL_NAMES):
        raise ValueError(f"special_tokens must have some of the keys {', '.join(SPECIAL_NAMES)}.")
    for name, content in value.items():
        if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN_CHARS:
            raise ValueError(f"{name} must be a token of at most {MAX_TOKEN_CHARS} characters.")
    return value


def _read_token(entry: object) -> OwnToken:
    if not isinstance(entry, dict):
        raise ValueError("Each of added_tokens must be an object.")
    token_id, content = entry.get("id"), entry.get("content")
    if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < 2**31:
        raise ValueError(f"An added token has the id {str(token_id)[:40]}.")
    if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN_CHARS:
        raise ValueError(f"The added token {token_id} must have 1 to {MAX_TOKEN_CHARS} characters.")
    flags = [entry.get(name, False) for name in ("special", "lstrip", "rstrip")]
    if not all(isinstance(flag, bool) for flag in flags):
        raise ValueError(f"The added token {token_id} has a flag that is neither true nor false.")
    return OwnToken(token_id, content, *flags)
