"""The manifest of an export: what is in it, how to check it, and what came before it.

Written last: where there is no manifest there is no export. It says when nothing, so that the same
input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.billing.files import DECIMAL_PRECISION, DECIMAL_SCALE, WrittenFile
from weft.billing.money import CURRENCY, decimal_text
from weft.billing.tables import Column, utc_text

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
# when the columns became what they are; to be moved along with them
SCHEMA_CREATED = "2026-11-21T00:00:00Z"
_COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")


@dataclass(frozen=True, slots=True)
class ExportLabel:
    """What an export is of. `scope` is "tenant=<id>" or "all"."""

    dataset: str
    focus_version: str
    month: str
    scope: str
    sequence: int

    @property
    def series(self) -> str:
        """The folder of all exports that replace each other."""
        dataset = f"focus/v{self.focus_version}/{self.dataset}"
        return f"{dataset}/billing_period={self.month}/{self.scope}"

    @property
    def folder(self) -> str:
        return f"{self.series}/export={self.sequence:06d}"

    @property
    def export_id(self) -> str:
        return f"exp_{hashlib.sha256(self.folder.encode()).hexdigest()[:32]}"


def create_manifest(
    label: ExportLabel,
    columns: Sequence[Column],
    file: WrittenFile,
    *,
    previous_sha256: str | None,
    watermark_at: int,
    is_final: bool,
    generator: str,
) -> bytes:
    """The manifest's bytes. `previous_sha256` is of the manifest that this export replaces."""
    body: dict[str, Any] = {
        "manifest_version": FORMAT_VERSION,
        "export_id": label.export_id,
        "dataset": label.dataset,
        "billing_period": label.month,
        "scope": label.scope,
        "sequence": label.sequence,
        "previous_sha256": previous_sha256,
        "is_final": is_final,
        "watermark": utc_text(watermark_at),
        "generator_version": generator,
        "content_sha256": file.content_sha256,
        "files": [_file(file)],
        "sums": {CURRENCY: _sums(file)},
        "focus": create_schema(label, columns),
    }
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()


def create_schema(label: ExportLabel, columns: Sequence[Column]) -> dict[str, Any]:
    """FOCUS's metadata of the table's schema."""
    definitions = [_definition(column) for column in columns]
    digest = hashlib.sha256(json.dumps(definitions, sort_keys=True).encode()).hexdigest()
    return {
        "SchemaId": f"{label.dataset}-{label.focus_version}-{digest[:16]}",
        "FocusVersion": label.focus_version,
        "CreationDate": SCHEMA_CREATED,
        "ColumnDefinition": definitions,
    }


def _definition(column: Column) -> dict[str, Any]:
    names = {"string": "STRING", "json": "JSON", "decimal": "DECIMAL", "datetime": "DATETIME"}
    found: dict[str, Any] = {"ColumnName": column.name, "DataType": names[column.type]}
    if column.type == "decimal":
        found |= {"NumericPrecision": DECIMAL_PRECISION, "NumberScale": DECIMAL_SCALE}
    return found


def _file(file: WrittenFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "num_bytes": file.num_bytes,
        "num_rows": file.num_rows,
        "sha256": file.sha256,
    }


def _sums(file: WrittenFile) -> Mapping[str, str]:
    return {name: decimal_text(file.sums[name]) for name in _COSTS if name in file.sums}
