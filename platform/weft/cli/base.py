"""Looks at folders before anything slow is done with them."""

from __future__ import annotations

from pathlib import Path

from weft.cli.output import fail

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def check_base(folder: Path) -> None:
    """End with a sentence when `folder` is no Hugging Face model folder."""
    if not folder.is_dir():
        raise fail(f"there is no folder {folder}")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise fail(f"{folder} has no {name}: it is not a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise fail(f"{folder} holds no safetensors file: it is not a Hugging Face model folder")
