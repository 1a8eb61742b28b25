"""Options of a command that are a group of settings: one for each setting that has help.

The settings' fields say all there is to say; a command gets the settings, built and checked.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_type_hints

import typer

from weft.cli.output import fail
from weft.settings import MIB, Option, ServerSettings

_DAY_S = 86400.0
# beside the flag, for those whose place seldom changes
_VARIABLES = {"data_dir": "WEFT_DATA"}


def takes_settings(command: Callable[[ServerSettings], None]) -> Callable[..., None]:
    """The command as typer wants it: with a parameter for each setting."""

    def run(**values: Any) -> None:
        try:
            settings = ServerSettings(**{**from_environment(os.environ), **_read(values)})
        except ValueError as error:
            raise fail(str(error)) from error
        command(settings)

    types = get_type_hints(ServerSettings)
    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(field, types[field.name]) for field in _fields() if _has_flag(field)]
    )
    run.__annotations__ = {}
    return run


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings that come from variables, as those that may hold a password do."""
    return {
        field.name: environ[name]
        for field in _fields()
        if (name := _option(field).environment) and name in environ
    }


def _fields() -> list[dataclasses.Field[Any]]:
    """Those of the server itself first."""
    found = list(dataclasses.fields(ServerSettings))
    own = inspect.get_annotations(ServerSettings)
    return sorted(found, key=lambda field: field.name not in own)


def _option(field: dataclasses.Field[Any]) -> Option:
    option: Option = field.metadata["option"]
    return option


def _has_flag(field: dataclasses.Field[Any]) -> bool:
    return bool(_option(field).help) and not _option(field).environment


def _parameter(field: dataclasses.Field[Any], annotation: Any) -> inspect.Parameter:
    option, default = _option(field), field.default
    flag = option.flag or "--" + field.name.replace("_", "-")
    if bool in (annotation, *get_args(annotation)):
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    if get_args(annotation)[:1] == (str,) and isinstance(default, tuple):
        annotation, default = list[str] | None, None  # given at all: instead of the default
    described = typer.Option(flag, help=option.help, envvar=_VARIABLES.get(field.name))
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty
        if default is dataclasses.MISSING
        else _shown(option, default),
        annotation=Annotated[annotation, described],
    )


def _shown(option: Option, value: Any) -> Any:
    """A setting's value in the unit of its flag."""
    if value is None or not option.unit:
        return value
    return value // MIB if option.unit == "MiB" else value / _DAY_S


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from the flags' values."""
    read: dict[str, Any] = {}
    for field in _fields():
        if field.name not in values:
            continue
        value, unit = values[field.name], _option(field).unit
        if isinstance(field.default, tuple):
            value = field.default if value is None else tuple(value)
        elif value is not None and unit:
            value = value * (MIB if unit == "MiB" else _DAY_S)
        read[field.name] = value
    return read
