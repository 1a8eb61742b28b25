"""What a tokenizer that came with an adapter has that the base's has not, worked out in a process
of its own: `python -m` this module.

Such files are megabytes of JSON from strangers. They must be the base's tokenizer with tokens
added; then all that is kept is those, the names of special tokens, and the chat template. The job
is one JSON object on standard input, the outcome one on standard output.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from weft.own_tokenizer import OwnTokenizer
from weft.template_worker import render
from weft.tokenizer import (
    SPECIAL_NAMES,
    BaseTokenizer,
    read_chat_template,
    read_json,
    token_text,
)
from weft_adapters.own_tokens import OwnTokens, read_own_tokens

_SECTIONS = ("normalizer", "pre_tokenizer", "decoder", "model")
# what is put around them is what a tokenizer puts around any text
_PROBES = ("", "a", "a b")
_MAX_MEMORY_BYTES = 4 << 30
_MAX_CPU_S = 30


class TokenizerRefusedError(ValueError):
    """A sentence for the tenant."""


def reduce(base_dir: Path, folder: Path) -> OwnTokens:
    """Read those files of a tokenizer that are in `folder`. TokenizerRefusedError."""
    base = BaseTokenizer.from_dir(base_dir)
    try:
        tokens = _own_tokens(base, base_dir, folder)
        names, template = _names_and_template(base, folder)
        own = read_own_tokens(
            {"added_tokens": tokens, "special_tokens": names, "chat_template": template}
        )
        check_own_tokens(base, own)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ValueError):
            raise TokenizerRefusedError(f"The adapter's tokenizer is refused. {error}") from error
        raise TokenizerRefusedError(
            f"The adapter's tokenizer files are malformed ({type(error).__name__})."
        ) from error
    return own


def check_own_tokens(base: BaseTokenizer, own: OwnTokens) -> None:
    """ValueError for what contradicts the base's tokenizer, or a template that cannot be used."""
    OwnTokenizer(base, own, lambda template, variables: "")
    if own.chat_template is None:
        return
    names = {**base.special_names, **(own.special_names or {})}
    messages = [{"role": "user", "content": "Hello"}]
    outcome = render(own.chat_template, base.template_variables(messages, names=names))
    # it may refuse a conversation, but not for what it is
    if "refused" in outcome and not outcome["refused"].startswith("The chat template refused"):
        raise ValueError(outcome["refused"])


def _own_tokens(base: BaseTokenizer, base_dir: Path, folder: Path) -> list[dict[str, Any]]:
    if not (folder / "tokenizer.json").is_file():
        return []
    theirs = read_json(folder / "tokenizer.json")
    ours = json.loads(Tokenizer.from_file(str(base_dir / "tokenizer.json")).to_str())
    for section in _SECTIONS:
        if _essence(theirs.get(section)) != _essence(ours.get(section)):
            raise ValueError(
                f"Its {section} is not the base's; only added tokens can differ. Without "
                "tokenizer.json the adapter is served with the base's tokenizer."
            )
    if _framed(folder / "tokenizer.json") != _framed(base_dir / "tokenizer.json"):
        raise ValueError("It puts other tokens around a text than the base's does.")
    known = {token["content"]: token for token in ours["added_tokens"]}
    own = []
    for token in theirs.get("added_tokens") or []:
        content = token["content"]
        base_token = known.pop(content, None)
        if base_token is None:
            own.append(_checked(token, has_normalizer=_essence(ours.get("normalizer")) is not None))
        elif _essence(base_token) != _essence(token):
            raise ValueError(f"Its token {content[:100]!r} is another than the base's.")
    if known:
        raise ValueError(f"It lacks the base's token {min(known)[:100]!r}.")
    return own


def _framed(file: Path) -> list[list[int]]:
    """What a post-processor comes to: exporters write the same one in several ways."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [tokenizer.encode(text).ids for text in _PROBES]
    except BaseException as error:  # the library panics on some files
        raise ValueError(f"It cannot be loaded: {str(error)[:200]}") from error


def _checked(token: Mapping[str, Any], *, has_normalizer: bool) -> dict[str, Any]:
    content = token["content"]
    if token.get("single_word"):
        raise ValueError(f"The token {content[:100]!r} is for single words, which is not served.")
    if token.get("normalized") and has_normalizer and not str(content).isascii():
        raise ValueError(f"The token {content[:100]!r} is for normalized text, which is not served")
    kept = ("id", "content", "special", "lstrip", "rstrip")
    return {key: token[key] for key in kept if key in token}


def _names_and_template(base: BaseTokenizer, folder: Path) -> tuple[dict[str, str], str | None]:
    config = {
        **read_json(folder / "special_tokens_map.json"),
        **read_json(folder / "tokenizer_config.json"),
    }
    names = {name: token_text(config[name]) for name in SPECIAL_NAMES if config.get(name)}
    own = {name: text for name, text in names.items() if base.special_names.get(name) != text}
    template = read_chat_template(folder, config)
    return own, None if template == base.chat_template else template


def _essence(value: Any) -> Any:
    """Without what is off or absent: versions of the library differ in what they write out. Merges
    are pairs, or one text with a space between."""
    if isinstance(value, dict):
        found = {key: _essence(part) for key, part in value.items()}
        if isinstance(found.get("merges"), list):
            found["merges"] = [m if isinstance(m, str) else " ".join(m) for m in found["merges"]]
        return {
            key: part for key, part in found.items() if part not in (None, False, [], {})
        } or None
    if isinstance(value, list):
        return [_essence(part) for part in value]
    return value


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))
    job = json.load(sys.stdin)
    try:
        own = reduce(Path(job["base_dir"]), Path(job["folder"]))
    except (TokenizerRefusedError, MemoryError) as error:
        json.dump({"refused": str(error) or "The tokenizer's files are too large."}, sys.stdout)
        return
    json.dump({"tokenizer": own.to_dict() if own else None}, sys.stdout)


if __name__ == "__main__":
    main()
