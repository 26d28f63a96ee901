"""The JSON Schema that is published of metrics documents.

One line writes it anew: ``python -c "from qvec_cli.results.schema import publish; publish()"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.results.metrics_document import (
    RESULTS,
    EnvironmentRecord,
    InputRecord,
    Json,
    MetricsDocument,
    PlanResults,
    TimingRecord,
    UseRecord,
    WrittenScore,
)

_CLOSED: Final = (MetricsDocument, InputRecord, UseRecord, EnvironmentRecord, TimingRecord)
"""Structs that have no other keys; readers pass over those of later versions all the same."""


def json_schema() -> Json:
    """The JSON Schema of a metrics document.

    Readers take fewer numbers of a score than writers write, so that ``WrittenScore`` stands there
    for ``Score``; else a field is required unless it has a default.
    """
    kinds = [kind for rows in RESULTS.values() for kind in rows.values() if kind is not Json]
    types = [MetricsDocument[Json, Json], PlanResults, WrittenScore, *dict.fromkeys(kinds)]
    _, parts = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    parts = {re.split(r"\W|_", name)[0]: part for name, part in parts.items()}
    parts["Score"] = parts.pop("WrittenScore")
    for part in parts.values():
        part.pop("title", None)
    for kind in _CLOSED:
        parts[kind.__name__]["additionalProperties"] = False
    document = parts.pop("MetricsDocument")
    document["properties"]["command"] = {"enum": list(RESULTS)}
    document["allOf"] = [
        {
            "if": {"properties": {"command": {"const": command}}},
            "then": {"properties": {"results": _choice({"plan": PlanResults, **rows})}},
        }
        for command, rows in RESULTS.items()
        if rows != {"": Json}
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qvec metrics, version 1",
        **document,
        "$defs": dict(sorted(parts.items())),
    }


def _choice(rows: Mapping[str, Any]) -> Json:
    """The schema of the first row whose key is there."""
    (key, kind), *others = rows.items()
    schema = {} if kind is Json else {"$ref": f"#/$defs/{kind.__name__}"}
    if not key:
        return schema
    return {"if": {"required": [key]}, "then": schema, "else": _choice(dict(others))}


def publish() -> None:
    """Writes the schema that the package ships."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    SCHEMA_FILE.write_text(f"{text}\n", encoding="utf-8")
