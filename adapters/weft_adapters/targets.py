"""Which modules and parameters a config names, as PEFT matches them.

What an adapter changes is told by its tensors; the names in its config say what should be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weft_adapters.expressions import Expression
from weft_adapters.faults import shown
from weft_adapters.sites import (
    ATTENTION_PROJECTIONS,
    ROUTER,
    SHARED_MLP_PROJECTIONS,
    VOCABULARY_MODULES,
    BaseSpec,
    Site,
)

MAX_NAMES = 100_000
MAX_NAME_CHARS = 300
MAX_EXPRESSION_CHARS = 2000
ALL_LINEAR = "all-linear"

_NAME = re.compile(r"[A-Za-z0-9_.\-]*\Z")


class Names:
    """Names of modules or the ends of them, or one expression for whole names."""

    def __init__(self, value: str | Iterable[str]) -> None:
        """Raises ValueError, a sentence naming what is wrong."""
        self._expression: Expression | None = None
        self._ends: frozenset[str] = frozenset()
        if isinstance(value, str):
            if len(value) > MAX_EXPRESSION_CHARS:
                raise ValueError(f"The pattern {shown(value)} has {len(value)} characters.")
            self._expression = Expression(value)
            return
        self._ends = frozenset(value)
        if len(self._ends) > MAX_NAMES:
            raise ValueError(f"There are {len(self._ends)} names; at most {MAX_NAMES}.")
        for name in self._ends:
            if len(name) > MAX_NAME_CHARS:
                raise ValueError(f"The name {shown(name)} has {len(name)} characters.")

    @property
    def is_expression(self) -> bool:
        return self._expression is not None

    def has_whole(self, name: str) -> bool:
        """True where the full name itself is one of the names."""
        return name in self._ends

    def match(self, name: str) -> bool:
        """True for a full name (`model.layers...`). Raises ExpressionError, see `Expression`."""
        if self._expression is not None:
            return self._expression.matches(name)
        end = name
        while end:
            if end in self._ends:
                return True
            end = end.partition(".")[2]
        return False


@dataclass(frozen=True, slots=True)
class LayerRule:
    """`layers_to_transform`, and `layers_pattern`: what stands before the layer's number."""

    layers: frozenset[int]
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            if _NAME.match(pattern) is None or len(pattern) > MAX_NAME_CHARS:
                raise ValueError(f"The layers_pattern {shown(pattern)} is not a plain name.")

    def match(self, name: str) -> bool:
        """True where the first number after a pattern, or after any two names, is a layer's."""
        parts = name.split(".")
        for pattern in self.patterns or (None,):
            index = _number_after(parts, pattern)
            if index is not None:
                return index in self.layers
        return False


def _number_after(parts: list[str], pattern: str | None) -> int | None:
    before = [None, None] if pattern is None else pattern.split(".")
    for end in range(len(before), len(parts) - 1):
        if not (parts[end].isascii() and parts[end].isdigit()):
            continue
        if pattern is None or parts[end - len(before) : end] == before:
            return int(parts[end])
    return None


@dataclass(frozen=True, slots=True)
class Targets:
    """Of a config. `modules` None: it does not say; `is_all_linear`: whatever the base has."""

    modules: Names | None = None
    is_all_linear: bool = False
    excluded: Names | None = None
    layers: LayerRule | None = None
    parameters: Names | None = None

    @property
    def says_something(self) -> bool:
        return self.is_all_linear or self.modules is not None or self.parameters is not None

    def has_module(self, name: str) -> bool:
        """True when PEFT adapts the module of this full name."""
        if self.excluded is not None and self.excluded.match(name):
            return False
        if self.is_all_linear:
            return True
        if self.modules is None or not self.modules.match(name):
            return False
        if self.layers is None or self.modules.is_expression or self.modules.has_whole(name):
            return True
        return self.layers.match(name)

    def has_parameter(self, name: str) -> bool:
        """True when PEFT adapts the parameter of this full name by itself."""
        return self.parameters is not None and self.parameters.match(name)

    def has_site(self, site: Site, base: BaseSpec) -> bool:
        modules, parameters = _names_of(site, base)
        return any(map(self.has_module, modules)) or any(map(self.has_parameter, parameters))


def _names_of(site: Site, base: BaseSpec) -> tuple[list[str], list[str]]:
    """The modules that are a site, and the parameters that it is in or is: transformers 4 has a
    module per expert, transformers 5 parameters of all experts."""
    layer, names = f"model.layers.{site.layer}", base.expert_names
    if site.is_vocabulary:
        return [VOCABULARY_MODULES[site.projection]], []
    if site.projection in ATTENTION_PROJECTIONS:
        return [f"{layer}.self_attn.{site.projection}"], []
    if site.projection == ROUTER:
        blocks = dict.fromkeys(("mlp", names.block))
        return [f"{layer}.{block}.gate" for block in blocks], [f"{layer}.mlp.gate.weight"]
    if site.projection in SHARED_MLP_PROJECTIONS:
        return [f"{layer}.mlp.shared_expert.{site.projection.removeprefix('shared_')}"], []
    if site.expert is None:
        return [f"{layer}.mlp.{site.projection}"], []
    is_down = site.projection == "down_proj"
    fused = "down_proj" if is_down else "gate_up_proj"
    spelled = names.spell(site.projection)
    return (
        [f"{layer}.{names.block}.experts.{site.expert}.{spelled}"],
        [f"{layer}.mlp.experts.{fused}"],
    )


def read_targets(raw: Mapping[str, object]) -> Targets:
    """From a parsed config. Raises ValueError naming the key."""
    modules = _read_names(raw, "target_modules", allows_expression=True)
    is_all_linear = isinstance(modules, str) and modules.lower() == ALL_LINEAR
    excluded = _read_names(raw, "exclude_modules", allows_expression=True)
    parameters = _read_names(raw, "target_parameters", allows_expression=False)
    return Targets(
        modules=None if modules is None or is_all_linear else _named("target_modules", modules),
        is_all_linear=is_all_linear,
        excluded=_named("exclude_modules", excluded) if excluded else None,
        layers=_read_layers(raw),
        parameters=_named("target_parameters", parameters) if parameters else None,
    )


def _named(key: str, value: str | list[str]) -> Names:
    try:
        return Names(value)
    except ValueError as error:
        raise ValueError(f"{key} is refused. {error}") from None


def _read_names(
    raw: Mapping[str, object], key: str, *, allows_expression: bool
) -> str | list[str] | None:
    value = raw.get(key)
    if value is None or (isinstance(value, str) and allows_expression):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        kinds = "a string or a list of strings" if allows_expression else "a list of strings"
        raise ValueError(f"{key} must be {kinds}")
    return value


def _read_layers(raw: Mapping[str, object]) -> LayerRule | None:
    value = raw.get("layers_to_transform")
    given = value if isinstance(value, list) else [value]
    if value is None or not given:
        return None
    layers = [n for n in given if isinstance(n, int) and not isinstance(n, bool)]
    if len(layers) < len(given):
        raise ValueError("layers_to_transform must be a whole number or a list of such")
    patterns = raw.get("layers_pattern")
    names = [patterns] if isinstance(patterns, str) else patterns or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("layers_pattern must be a string or a list of strings")
    return LayerRule(frozenset(layers), tuple(name for name in names if name))


@dataclass(frozen=True, slots=True)
class Differences:
    """Sites that a config names and a file lacks, and those that the file has unnamed."""

    missing: tuple[Site, ...] = ()
    unnamed: tuple[Site, ...] = ()


def compare(targets: Targets, adapted: Iterable[Site], base: BaseSpec) -> Differences:
    """Raises ExpressionError where an expression takes too many steps on this base's names. Looks
    at every site of the base: for a report, not for a load."""
    if not targets.says_something:
        return Differences()
    there = set(adapted)
    named = {site for site in base.sites() if targets.has_site(site, base)}
    if base.vocab_size and not targets.is_all_linear:
        named |= {s for s in (base.embedding, base.head) if targets.has_site(s, base)}
    unnamed = {site for site in there - named if not site.is_vocabulary}  # it may be saved whole
    return Differences(tuple(sorted(named - there)), tuple(sorted(unnamed)))
