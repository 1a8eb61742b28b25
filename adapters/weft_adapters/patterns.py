"""The keys of `rank_pattern` and `alpha_pattern`: a tenant's regular expressions, matched safely.

PEFT takes the first key for which `re.match(rf"(.*\\.)?({key})$", module)` holds. A key that is the
end of a module's name is looked up; the few others run as `expressions`. Knows nothing of ranks or
configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from weft_adapters.expressions import Expressions
from weft_adapters.faults import shown

MAX_PATTERNS = 100_000
MAX_PATTERN_CHARS = 300
MAX_EXPRESSION_CHARS = 512

_NUMBER = r"(?:0|[1-9][0-9]*)"
_NAME = re.compile(
    rf"(?:(?:(?:(?:model\.)?layers\.)?{_NUMBER}\.)?(?:self_attn|mlp|block_sparse_moe)\.)?"
    rf"(?:experts\.(?:{_NUMBER}\.)?|shared_expert\.)?"
    r"(?:(?:[qkvo]|gate|up|gate_up|down)_proj|w[123]|shared_expert_gate)\Z"
)


class PatternSet:
    """The keys of one pattern table, in the order in which PEFT tries them."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises ValueError, a sentence naming the key, for one that `expressions` refuses."""
        self._keys = tuple(keys)
        if len(self._keys) > MAX_PATTERNS:
            raise ValueError(f"There are {len(self._keys)} patterns; at most {MAX_PATTERNS}.")
        self._names: dict[str, int] = {}
        expressions: list[tuple[int, str]] = []
        for index, key in enumerate(self._keys):
            if len(key) > MAX_PATTERN_CHARS:
                raise ValueError(f"The pattern {shown(key)} has {len(key)} characters.")
            name = key.replace("\\.", ".")
            if _NAME.match(name) is not None:
                self._names.setdefault(name, index)
            else:
                expressions.append((index, key))
        if sum(len(key) for _, key in expressions) > MAX_EXPRESSION_CHARS:
            raise ValueError(
                f"The patterns that are not ends of module names have over {MAX_EXPRESSION_CHARS} "
                "characters together."
            )
        self._expressions = Expressions(expressions, after_dot=True)

    def first_match(self, module: str) -> str | None:
        """The first key that matches a module's full name (`model.layers...`), or None. Raises
        ExpressionError where the keys take too many steps."""
        found = [] if self._expressions.is_empty else [self._expressions.first_match(module)]
        end: str | None = module
        while end:
            found.append(self._names.get(end))
            end = end.partition(".")[2]
        indices = [index for index in found if index is not None]
        return self._keys[min(indices)] if indices else None
