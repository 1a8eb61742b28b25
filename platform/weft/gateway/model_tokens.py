"""The tokens that a request's model has: the base's, or an adapter's that has some of its own."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from weft.messages import RequestVocabulary
from weft.own_tokenizer import OwnTokenizer
from weft.registry.service import ResolvedModel
from weft.templates import TemplateRenderer
from weft.tokenizer import BaseTokenizer, ChatTokenizer
from weft_adapters.config import parse_config
from weft_adapters.own_tokens import OwnTokens

_MAX_KEPT = 256


@dataclass(frozen=True, slots=True)
class ModelTokens:
    """`vocabulary`: what the engine is told of it, None where it is the base's."""

    tokenizer: ChatTokenizer
    vocab_size: int
    vocabulary: RequestVocabulary | None = None


class ModelTokenizers:
    """Reads what an adapter has of its own at its first use, and keeps the last ones used.

    `read_config` gives a version's config by its digest, and may block; the engine verifies the
    same bytes before it serves the adapter.
    """

    def __init__(
        self, base: BaseTokenizer, vocab_size: int, read_config: Callable[[str], bytes]
    ) -> None:
        self._base = ModelTokens(base, vocab_size)
        self._base_tokenizer, self._read_config = base, read_config
        self._renderer = TemplateRenderer()
        self._kept: OrderedDict[str, OwnTokenizer] = OrderedDict()

    async def of(self, model: ResolvedModel) -> ModelTokens:
        """ValueError, a sentence, where the base's tokenizer was changed and contradicts them."""
        if model.vocab_size is None and not model.has_tokenizer:
            return self._base
        vocab_size = model.vocab_size or self._base.vocab_size
        if not model.has_tokenizer:
            vocabulary = RequestVocabulary(vocab_size)
            return ModelTokens(self._base_tokenizer, vocab_size, vocabulary)
        assert model.digest is not None, "the base has no tokens beside its own"
        own = self._kept.get(model.digest)
        if own is None:
            own = await asyncio.to_thread(self._read, model.digest)
            self._kept[model.digest] = own
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(model.digest)
        texts = tuple(own.texts.items())
        vocabulary = RequestVocabulary(vocab_size, own.eos_token_ids, texts)
        return ModelTokens(own, vocab_size, vocabulary)

    def _read(self, digest: str) -> OwnTokenizer:
        own = parse_config(self._read_config(digest)).own_tokens
        return OwnTokenizer(self._base_tokenizer, own or OwnTokens(), self._renderer.render)

    def close(self) -> None:
        self._renderer.close()
