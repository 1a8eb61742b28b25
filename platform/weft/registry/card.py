"""A model card's metadata: the YAML before the text of a README.md. Untrusted; never rendered.

Keeps what says where an adapter comes from and what may be done with it.
"""

from __future__ import annotations

import yaml

README_NAME = "README.md"
MAX_README_BYTES = 1024 * 1024
_MAX_FRONT_BYTES = 16 * 1024
_FENCE = "---"
_TEXTS = ("library_name", "base_model_relation", "license", "license_name", "license_link",
          "pipeline_tag")  # fmt: skip
_LISTS = ("base_model", "language", "tags", "datasets")
_MAX_TEXT = 255
_MAX_ITEMS = 32

Card = dict[str, str | list[str]]


def parse_card(readme: bytes) -> Card:
    """The known keys that hold what they should; empty for a card without metadata.

    A card decides nothing, so one that cannot be read is no fault of the adapter.
    """
    front = _front_matter(readme)
    try:
        # deep nesting runs into Python's own limit; aliases cost nothing, since nothing is expanded
        # every scalar is text to this loader: to make numbers and dates of them can fail anyhow
        found = yaml.BaseLoader(front).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    card: Card = {}
    for key in _TEXTS:
        text = _text(found.get(key))
        if text is not None:
            card[key] = text
    for key in _LISTS:
        items = _items(found.get(key))
        if items:
            card[key] = items
    return card


def _front_matter(readme: bytes) -> str:
    lines = readme[:_MAX_FRONT_BYTES].decode("utf-8", "replace").lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != _FENCE:
        return ""
    ends = [number for number, line in enumerate(lines) if number and line.rstrip() == _FENCE]
    return "\n".join(lines[1 : ends[0]]) if ends else ""


def _text(value: object) -> str | None:
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None


def _items(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for item in values[:_MAX_ITEMS] if (text := _text(item)) is not None]
