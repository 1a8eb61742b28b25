"""What a setting is: a dataclass field that knows its help, its flag and its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

MIB = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is described, given and bounded.

    `help` is for people; a setting without it is for code only, and has no flag. `flag`: other than
    the setting's own name. `unit`: what the flag counts in; the setting itself is in bytes or
    seconds. `environment`: the variable that it is read from instead of a flag, because it may hold
    a password. None is within any bound.
    """

    help: str = ""
    flag: str = ""
    unit: Literal["", "MiB", "days"] = ""
    environment: str = ""
    choices: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None

    def check(self, name: str, value: Any) -> None:
        """ValueError, naming the setting, for a value out of its bounds."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise ValueError(f"{name} must be one of {', '.join(self.choices)}, not {value!r}")
        # written so that a NaN is out of any bound
        if self.above is not None and not value > self.above:
            raise ValueError(f"{name} must be above {self.above:g}, not {value}")
        if self.at_least is not None and not value >= self.at_least:
            raise ValueError(f"{name} must be at least {self.at_least:g}, not {value}")


def setting(default: T, help: str = "", **options: Any) -> T:  # noqa: A002
    """A field with an `Option`; one that is read from the environment is kept out of `repr`."""
    option = Option(help, **options)
    value: T = field(default=default, repr=not option.environment, metadata={"option": option})
    return value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings. Checks what bounds its fields name; a group that checks more calls up.

    Groups are combined by inheriting from several, so they have no slots.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            option: Option | None = each.metadata.get("option")
            if option is not None:
                option.check(each.name, getattr(self, each.name))
