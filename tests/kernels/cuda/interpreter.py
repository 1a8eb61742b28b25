"""Triton's interpreter, which computes the same in two thirds of the time.

It spends most of it on finding out, at every operation, what it has found out before. This is of
the version that is pinned for installs without a CUDA device, the only ones that interpret.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


def hasten() -> None:
    """For this process; the interpreter must have been chosen."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    language: Any = interpreter.tl
    _replace_builtins_once(interpreter, language)
    interpreter._get_np_dtype = _remember_by_scalar(interpreter._get_np_dtype)
    core = language.core
    core._type_for_tuple_values = _remember_shapes(core._type_for_tuple_values, core.constexpr)


def _replace_builtins_once(interpreter: Any, language: Any) -> None:
    """Functions on numpy arrays take the place of the language's builtins. That is done again
    whenever a function of the language is called, and lists all members of the language to find
    the builtins among them, which takes longer than most functions do."""
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": language, "core": language.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()


def _remember_by_scalar(get_np_dtype: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A block has its scalar's dtype; the original makes a table of all of them for each."""
    found: dict[str, Any] = {}

    def get(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = get_np_dtype(dtype)
        return found[name]

    return get


def _remember_shapes(create: Callable[..., Any], constexpr: Any) -> Callable[..., Any]:
    """The type of a tuple of constants, such as each tensor has for its shape."""
    found: dict[tuple[int, ...], Any] = {}

    def get(values: Sequence[Any], fields: Any = None) -> Any:
        shape = []
        for value in values:
            if type(value) is not constexpr or type(value.value) is not int or fields is not None:
                return create(values, fields)
            shape.append(value.value)
        key = tuple(shape)
        if key not in found:
            found[key] = create(values)
        return found[key]

    return get
