"""Answers that must match a JSON schema or a regular expression, through xgrammar.

xgrammar is imported with the first grammar: an engine that is never asked for one starts without
it. What it would pass over in silence is refused here by name. Knows no tensors and no requests.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from weft.engine.grammar_check import check_regex, check_schema
from weft.messages import Grammar
from weft.vocabulary import Vocabulary

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarCompiler, GrammarMatcher

# compiled grammars that are kept for the next request with the same
MAX_GRAMMARS = 256
MAX_GRAMMAR_BYTES = 256 << 20
# whitespace characters in a row between JSON tokens: without a bound, a model that likes to indent
# spends its max_tokens on that and the answer never gets to its end
_MAX_WHITESPACE = 2

_PLACE = re.compile(r"^\[[\d:]+\] \S+:\d+: (?:Check failed: \(.*?\) is false: )?")


class GrammarState:
    """One sequence's place in its grammar, which is written in the base's tokens: those that an
    adapter has beyond the `vocab_size` first ones are no part of it."""

    def __init__(self, matcher: GrammarMatcher, vocab_size: int) -> None:
        self._matcher, self.vocab_size = matcher, vocab_size

    def fill(self, mask: Any, row: int) -> None:
        """Write which tokens may come next: bits of `mask[row]`, int32 `[M, ceil(V / 32)]` on the
        CPU. End of text may come exactly where the text so far matches."""
        self._matcher.fill_next_token_bitmask(mask, row)

    def accept(self, token_id: int) -> bool:
        """Take the sampled token; False when the grammar does not allow it."""
        return self._matcher.accept_token(token_id)

    @property
    def is_terminated(self) -> bool:
        """End of text was accepted; nothing may follow."""
        return self._matcher.is_terminated()


class Grammars:
    """Compiles grammars for one base's vocabulary and keeps the last ones used.

    `vocab_size` is the model's, which may be larger than the tokenizer's: those ids never match.
    Safe from any thread.
    """

    def __init__(
        self, vocabulary: Callable[[], Vocabulary], vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._eos_token_ids = eos_token_ids
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._num_bytes = 0
        # a large vocabulary takes seconds to read: who only looks up what is compiled must not wait
        self._compiler_lock = threading.Lock()
        self._compiler: GrammarCompiler | None = None
        # one at a time: a hard schema takes seconds, and the engine needs the other cores
        self._pool = ThreadPoolExecutor(1, "weft-grammar")

    async def prepare(self, grammar: Grammar) -> None:
        """Compile in a thread of its own, so that neither the caller's event loop nor the engine
        waits for it; ValueError says why there is no such grammar."""
        if self._find(grammar) is None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self.compile, grammar)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled grammar, at once where it was compiled before; ValueError as `prepare`."""
        found = self._find(grammar)
        if found is None:
            found = self._compile(grammar)
            with self._lock:
                self._keep(grammar, found)
        return found

    def create_state(self, grammar: Grammar) -> GrammarState:
        from xgrammar import GrammarMatcher

        return GrammarState(GrammarMatcher(self.compile(grammar)), self._vocab_size)

    def close(self) -> None:
        """Wait for no compilation any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _find(self, grammar: Grammar) -> CompiledGrammar | None:
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
            return self._compiled.get(grammar)

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        if grammar not in self._compiled:
            self._compiled[grammar] = compiled
            self._num_bytes += compiled.memory_size_bytes
        while self._compiled and (
            len(self._compiled) > MAX_GRAMMARS or self._num_bytes > MAX_GRAMMAR_BYTES
        ):
            _, dropped = self._compiled.popitem(last=False)
            self._num_bytes -= dropped.memory_size_bytes

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        compiler = self._create_compiler()
        try:
            if grammar.kind == "regex":
                return compiler.compile_regex(check_regex(grammar.text))
            schema = '{"type": "object"}'
            if grammar.kind == "json_schema":
                check_schema(grammar.text)
                schema = grammar.text
            return compiler.compile_json_schema(schema, max_whitespace_cnt=_MAX_WHITESPACE)
        except RuntimeError as error:
            what = "regular expression" if grammar.kind == "regex" else "JSON schema"
            reason = _PLACE.sub("", str(error)).strip()[:500]
            raise ValueError(f"The {what} cannot be used: {reason}") from error

    def _create_compiler(self) -> GrammarCompiler:
        with self._compiler_lock:
            if self._compiler is None:
                self._compiler = self._build_compiler()
            return self._compiler

    def _build_compiler(self) -> GrammarCompiler:
        try:
            from xgrammar import GrammarCompiler, TokenizerInfo, VocabType
        except ImportError as error:
            raise ValueError(
                "Structured output needs the package xgrammar, which this server does not have."
            ) from error
        vocabulary = self._vocabulary()
        if not vocabulary.is_exact or not self._eos_token_ids:
            raise ValueError(
                "Structured output needs a base with an end-of-text token and a byte-level or "
                "SentencePiece tokenizer."
            )
        # empty bytes make a token special to xgrammar: no text ever matches it
        tokens = [
            b"" if i in vocabulary.control_ids else token
            for i, token in enumerate(vocabulary.token_bytes[: self._vocab_size])
        ]
        info = TokenizerInfo(
            tokens, VocabType.RAW, vocab_size=self._vocab_size,
            stop_token_ids=sorted(self._eos_token_ids),
        )  # fmt: skip
        return GrammarCompiler(info, max_threads=1, cache_enabled=False)
