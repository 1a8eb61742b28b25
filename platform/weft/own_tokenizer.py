"""The tokenizer of an adapter that has tokens, names or a chat template of its own.

It is the base's, and what differs: an added token stands in a text for one of the base's control
tokens while the base's tokenizer splits it, so that the text around is tokenized exactly as it
would be by a tokenizer that knew the token. Safe from any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from weft.tokenizer import BaseTokenizer, ChatMessage, ContentGuard
from weft.vocabulary import Vocabulary
from weft_adapters.own_tokens import OwnToken, OwnTokens

Render = Callable[[str, Mapping[str, object]], str]
"""(a template, its variables) -> text; ValueError, a sentence, where there is none."""


class TokenDecoder:
    """From ids to text, where some are not the base's. `texts`: of each id beyond those, empty for
    a control token."""

    def __init__(self, base: BaseTokenizer, texts: Mapping[int, str]) -> None:
        self._base, self._texts = base, texts

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, control tokens left out."""
        texts = self._texts
        own = [texts[i] for i in ids if texts.get(i)]
        if not own:
            return self._base.decode([i for i in ids if i not in texts])
        # what stands for them is a control token, too, and those are left out
        stand_in = self._base.stand_in
        assert stand_in is not None, "tokens are only added to a base with control tokens"
        mixed = [
            stand_in.token_id if texts.get(i) else i
            for i in ids
            if texts.get(i) or (i not in texts and i not in self._base.control_ids)
        ]
        parts = self._base.decode(mixed, skips_control=False).split(stand_in.content)
        if len(parts) == len(own) + 1:
            return parts[0] + "".join(t + part for t, part in zip(own, parts[1:], strict=True))
        return self._decode_apart(ids)  # the text around spells the stand-in's name

    def _decode_apart(self, ids: Sequence[int]) -> str:
        text, run = "", list[int]()
        for i in ids:
            if i not in self._texts:
                run.append(i)
                continue
            text, run = text + self._base.decode(run) + self._texts[i], []
        return text + self._base.decode(run)


class OwnTokenizer:
    """A `ChatTokenizer` (see `weft.tokenizer`)."""

    def __init__(self, base: BaseTokenizer, own: OwnTokens, render: Render) -> None:
        """ValueError, a sentence, for tokens that contradict the base's."""
        self._base, self._own, self._render = base, own, render
        _check_tokens(base, own.tokens)
        self._decoder = TokenDecoder(base, self.texts)
        self._names = {**base.special_names, **(own.special_names or {})}
        self.eos_token_ids = base.eos_token_ids | self._own_eos()
        control = [token.content for token in own.tokens if token.is_special]
        self._control_pattern = _any_of([*control, *base.control_contents])
        stand_in = base.stand_in
        self._by_content = {token.content: token for token in own.tokens}
        self._split_pattern = None
        if own.tokens and stand_in is not None:
            self._split_pattern = _any_of([*self._by_content, stand_in.content])

    def _own_eos(self) -> frozenset[int]:
        content = (self._own.special_names or {}).get("eos_token")
        if content is None:
            return frozenset()
        own = next((t.token_id for t in self._own.tokens if t.content == content), None)
        token_id = self._base.token_to_id(content) if own is None else own
        if token_id is None:
            raise ValueError(f"The eos_token {content[:100]!r} is no token.")
        return frozenset((token_id,))

    @property
    def texts(self) -> dict[int, str]:
        """Of the tokens that the base does not have; empty for control tokens."""
        return {t.token_id: "" if t.is_special else t.content for t in self._own.tokens}

    @property
    def has_chat_template(self) -> bool:
        return self._own.chat_template is not None or self._base.has_chat_template

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What each token is in bytes; made at the first use."""
        return self._base.vocabulary.extended(
            {token.token_id: token.content.encode() for token in self._own.tokens},
            {token.token_id for token in self._own.tokens if token.is_special},
        )

    def decode(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(ids)

    def encode(self, text: str) -> list[int]:
        """Tokens of a raw prompt; see `BaseTokenizer.encode`."""
        return self._encode(text, adds_special_tokens=True)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Tokens of the rendered conversation; see `BaseTokenizer.encode_chat`."""
        guard = ContentGuard(self._control_pattern)
        guarded = [{**m, "content": guard.hide(m["content"])} for m in messages]
        ids: list[int] = []
        for text, is_literal in guard.split(self._apply_template(guarded)):
            if is_literal:
                ids += self._base.encode_literally(text)
            else:
                ids += self._encode(text, adds_special_tokens=False)
        return ids

    def _apply_template(self, messages: Sequence[ChatMessage]) -> str:
        if self._own.chat_template is None:
            return self._base.apply_chat_template(messages, names=self._names)
        return self._render(
            self._own.chat_template, self._base.template_variables(messages, names=self._names)
        )

    def _encode(self, text: str, *, adds_special_tokens: bool) -> list[int]:
        stand_in, pattern = self._base.stand_in, self._split_pattern
        if pattern is None or stand_in is None:
            return self._base.encode(text, adds_special_tokens=adds_special_tokens)
        parts, found, end = list[str](), list[int](), 0
        for match in pattern.finditer(text):
            if match.start() < end:
                continue  # white space that the token before took with it
            token = self._by_content.get(match[0])
            part = text[end : match.start()]
            parts += [part.rstrip() if token and token.lstrip else part, stand_in.content]
            found.append(token.token_id if token else stand_in.token_id)
            end = match.end()
            if token and token.rstrip:
                end += _num_spaces(text, end)
        split = "".join([*parts, text[end:]])
        own = iter(found)
        ids = self._base.encode(split, adds_special_tokens=adds_special_tokens)
        ids = [next(own) if i == stand_in.token_id else i for i in ids]
        assert next(own, None) is None, "each stand-in is one token"
        return ids


def _check_tokens(base: BaseTokenizer, tokens: Sequence[OwnToken]) -> None:
    if tokens and base.stand_in is None:
        raise ValueError("The base's tokenizer has no control token, so none can be added to it.")
    for token in tokens:
        known = base.token_to_id(token.content)
        if known is not None and known != token.token_id:
            raise ValueError(
                f"The added token {token.content[:100]!r} has the id {token.token_id}, and in the "
                f"base's tokenizer {known}."
            )
        other = base.id_to_token(token.token_id)
        if known is None and other is not None:
            raise ValueError(
                f"The added token {token.content[:100]!r} has the id {token.token_id}, which is "
                f"the base's {other[:100]!r}."
            )
        if token.content in base.control_contents:
            raise ValueError(f"{token.content[:100]!r} is a control token of the base.")


def _num_spaces(text: str, start: int) -> int:
    end = start
    while end < len(text) and text[end].isspace():
        end += 1
    return end - start


def _any_of(contents: Sequence[str]) -> re.Pattern[str] | None:
    ordered = sorted(set(contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
