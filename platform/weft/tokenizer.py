"""Text to tokens and back, and chat templates, from a base model's own Hugging Face files.

Knows `tokenizers` and Jinja, neither torch nor transformers nor HTTP. Rendered templates carry the
model's control tokens as text; what a caller wrote never becomes one (see `encode_chat`).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from weft.vocabulary import Vocabulary

ChatMessage = Mapping[str, str]
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")

# from here on a thread of its own pays off
_LONG_CHARS = 4096


@dataclass(frozen=True, slots=True)
class StandIn:
    """A control token that may stand for others while a text is split; see `own_tokenizer`."""

    token_id: int
    content: str


class ChatTokenizer(Protocol):
    """What the gateway asks of a base's tokenizer, and of an adapter's."""

    eos_token_ids: frozenset[int]

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]: ...


class BaseTokenizer:
    """One base model's tokenizer. Encoding and decoding are safe from any thread."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        # the same vocabulary, but "<|end|>" in the text is only text
        self._literal = Tokenizer.from_str(tokenizer.to_str())
        self._literal.encode_special_tokens = True
        self.eos_token_ids = eos_token_ids
        self.special_names: Mapping[str, str] = dict(special_tokens or {})
        self.chat_template = chat_template
        self._template = None if chat_template is None else compile_template(chat_template)
        added = tokenizer.get_added_tokens_decoder()
        self.control_ids = frozenset(i for i, token in added.items() if token.special)
        control = sorted({added[i].content for i in self.control_ids}, key=len, reverse=True)
        self.control_contents = tuple(control)
        self._control_pattern = re.compile("|".join(map(re.escape, control))) if control else None

    @classmethod
    def from_dir(cls, path: str | Path) -> BaseTokenizer:
        """Read `tokenizer.json` and what stands beside it; FileNotFoundError without it."""
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: the base model needs a fast tokenizer")
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = read_json(folder / "tokenizer_config.json")
        special = {name: token_text(config[name]) for name in SPECIAL_NAMES if config.get(name)}
        return cls(
            tokenizer,
            eos_token_ids=_eos_token_ids(folder, tokenizer, special.get("eos_token")),
            chat_template=read_chat_template(folder, config),
            special_tokens=special,
        )

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def stand_in(self) -> StandIn | None:
        """One that takes no white space with it and that no prompt begins or ends with by itself;
        None where there is none."""
        framing = set(self._tokenizer.encode("").ids)
        for token_id, token in sorted(self._tokenizer.get_added_tokens_decoder().items()):
            takes_more = token.lstrip or token.rstrip or token.single_word or token.normalized
            if token.special and not takes_more and token_id not in framing:
                return StandIn(token_id, token.content)
        return None

    def token_to_id(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What each token is in bytes; made at the first use."""
        return Vocabulary.of(self._tokenizer)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, *, adds_special_tokens: bool = True) -> list[int]:
        """Tokens of a raw prompt: the model's own prefix (BOS) is added where it has one.

        Control tokens written in `text` become control tokens: a raw prompt is the caller's whole.
        """
        return _encode(self._tokenizer, text, add_special_tokens=adds_special_tokens)

    def encode_literally(self, text: str) -> list[int]:
        """Control tokens written in `text` stay text."""
        return _encode(self._literal, text, add_special_tokens=False)

    def decode(self, ids: Sequence[int], *, skips_control: bool = True) -> str:
        """Text of tokens, control tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skips_control)

    def apply_chat_template(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool = True,
        names: Mapping[str, str] | None = None,
    ) -> str:
        """The conversation as the base was trained to see it, with other `names` of special tokens
        if any are given; ValueError if it cannot be shown."""
        if self._template is None:
            raise ValueError("The base model has no chat template.")
        variables = self.template_variables(messages, add_generation_prompt, names)
        return render_template(self._template, variables)

    def template_variables(
        self,
        messages: Sequence[ChatMessage],
        add_generation_prompt: bool = True,
        names: Mapping[str, str] | None = None,
    ) -> dict[str, object]:
        """What a chat template may refer to."""
        return {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **(self.special_names if names is None else names),
        }

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Tokens of the rendered conversation, with the prompt for the answer.

        Control tokens of the template are control tokens; the same text inside a message's content
        is encoded as ordinary text, so a caller cannot open a turn that is not theirs. Contents
        without such text take the plain path and give exactly the tokens that transformers gives.
        """
        guard = ContentGuard(self._control_pattern)
        guarded = [{**m, "content": guard.hide(m["content"])} for m in messages]
        rendered = self.apply_chat_template(guarded)
        ids: list[int] = []
        for text, is_literal in guard.split(rendered):
            tokenizer = self._literal if is_literal else self._tokenizer
            ids += _encode(tokenizer, text, add_special_tokens=False)
        return ids


def render_template(template: jinja2.Template, variables: Mapping[str, object]) -> str:
    """ValueError, a sentence, where the template refuses what it is given."""
    try:
        return template.render(**variables)
    except SecurityError as error:
        raise ValueError(f"The chat template does what none may do: {error}") from error
    except jinja2.TemplateError as error:
        raise ValueError(f"The chat template refused the messages: {error}") from error


def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < _LONG_CHARS:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
    # only the call for batches gives up the interpreter's lock: 4 MiB would hold it for seconds
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
    return list(encoding.ids)


class ContentGuard:
    """Swaps control-token text in contents for placeholders that no caller can guess."""

    def __init__(self, control_pattern: re.Pattern[str] | None) -> None:
        self._control_pattern = control_pattern
        self._nonce = secrets.token_hex(8)
        self._hidden: list[str] = []

    def hide(self, content: str) -> str:
        if self._control_pattern is None:
            return content
        return self._control_pattern.sub(self._placeholder, content)

    def _placeholder(self, match: re.Match[str]) -> str:
        self._hidden.append(match[0])
        return f"weft{self._nonce}n{len(self._hidden) - 1}x"

    def split(self, rendered: str) -> Iterable[tuple[str, bool]]:
        """Pieces of `rendered` in order, and whether each is a caller's literal text."""
        if not self._hidden:
            return [(rendered, False)]
        parts = re.split(rf"weft{self._nonce}n(\d+)x", rendered)
        pieces = [
            (self._hidden[int(part)], True) if i % 2 else (part, False)
            for i, part in enumerate(parts)
        ]
        return [(text, is_literal) for text, is_literal in pieces if text]


def compile_template(source: str) -> jinja2.Template:
    """Hugging Face's template dialect: same whitespace rules, same helpers, sandboxed."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: object, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    def strftime_now(format_: str) -> str:
        return datetime.now().strftime(format_)

    helpers: dict[str, Callable[..., object]] = {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
    }
    env.globals.update(helpers)
    env.filters["tojson"] = to_json
    return env.from_string(source)


def read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} must hold a JSON object")
    return value


def token_text(value: str | Mapping[str, Any]) -> str:
    return value if isinstance(value, str) else str(value["content"])


def read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates: the default one
        return next((str(t["template"]) for t in template if t["name"] == "default"), None)
    return template


def _eos_token_ids(folder: Path, tokenizer: Tokenizer, eos_token: str | None) -> frozenset[int]:
    """Every id that ends an answer: generation_config, else config; and the tokenizer's own."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if value is not None:
            ids.update(value if isinstance(value, list) else [value])
            break
    if eos_token is not None:
        token_id = tokenizer.token_to_id(eos_token)
        if token_id is not None:
            ids.add(token_id)
    return frozenset(ids)
