"""The published JSON Schema of metrics documents, emitted from their structs.

One line writes it anew:
``python -c "from qvec_cli.results.metrics_schema import publish; publish()"``
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from qvec_cli.outputs.metrics import SCHEMA_FILE
from qvec_cli.results.metrics_document import (
    AgreementResults,
    ComparedResults,
    EnvironmentRecord,
    EvalResults,
    ExtractResults,
    InputRecord,
    Json,
    MetricsDocument,
    NonNegative,
    ProxiesRecord,
    QuantizeResults,
    SweepResults,
    TimingRecord,
    TrainingResults,
    UseRecord,
    one_of,
)
from qvec_cli.results.records import Count, GridRecord, Name, Positive, Score, Share


class WrittenScore(Struct, frozen=True):
    """What a document holds of an accuracy; ``Score`` is what is read back of it."""

    n: Positive
    n_correct: Count
    top1: Share
    n_correct_top5: Count
    top5: Share
    loss: Annotated[NonNegative, Meta(description="mean cross-entropy, nats")]
    standard_error: NonNegative
    images_per_second: NonNegative


class OutputResults(Struct, frozen=True):
    """Other commands: the file that was written."""

    output: Name
    digest: Name


class PlannedTensor(Struct, frozen=True, forbid_unknown_fields=True):
    """What would become of a tensor."""

    name: str
    dtype: str
    shape: tuple[Count, ...]
    fate: str


class PlanRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What --dry-run says that the run would do."""

    output: str | None
    tensors: tuple[PlannedTensor, ...]
    images: dict[str, Count]
    bytes_in: Count
    bytes_out: Count | None
    memory_bytes: Count | None = None


class PlanResults(Struct, frozen=True):
    """Any command with --dry-run."""

    plan: PlanRecord


class MomentsResults(Struct, frozen=True):
    """moments: the file that was written, and what it holds."""

    output: Name
    digest: Name
    layers: Positive
    tokens: Annotated[
        dict[str, Positive],
        Meta(
            description="input vectors that each mean is over, by layer; layers that share their "
            "inputs count once"
        ),
    ]
    images: Positive
    rank: Annotated[
        Positive | None, Meta(description="eigenpairs that are kept of each moment; null: all")
    ]
    sources: tuple[Json, ...]
    bytes: Positive
    model_bytes: Positive


class ExportCheck(Struct, frozen=True, forbid_unknown_fields=True):
    """Logits of the exported form beside those of qvec's own network, on random images."""

    images: Positive
    max_abs_diff: NonNegative
    max_abs_logit: NonNegative
    bound: Annotated[NonNegative, Meta(description="the largest max_abs_diff that is taken")]


class ExportResults(Struct, frozen=True):
    """export: the file or folder that was written."""

    output: Name
    digest: Any
    format: str
    grid: Any
    bytes_before: Count
    bytes_after: Count
    check: ExportCheck | None


class AdviceCandidate(Struct, frozen=True):
    """One way to low bits that advise has tried."""

    name: str
    family: Annotated[str, one_of("plain", "patch", "moments", "noise", "images", "refined")]
    grid: GridRecord
    bits_per_weight: NonNegative
    distance: float
    standard_error: NonNegative
    kept: Share
    data_use: UseRecord
    seconds: NonNegative
    commands: tuple[str, ...]
    test: Score | None = None


class SkippedCandidate(Struct, frozen=True):
    """One way that advise has not tried, and why."""

    name: str
    reason: str


class AdviceResults(Struct, frozen=True):
    """advise: what to do with a receiver."""

    decision: Annotated[
        str,
        one_of("nothing to recover", "another grid", "patch", "calibrate", "QAT after all"),
    ]
    chosen: str
    best_plain: str
    sure: str
    why: str
    commands: Annotated[tuple[str, ...], Meta(min_length=1)]
    measure: str
    proxies: ProxiesRecord
    candidates: Annotated[tuple[AdviceCandidate, ...], Meta(min_length=1)]
    skipped: tuple[SkippedCandidate, ...]


class PlotResults(Struct, frozen=True):
    """plot: the figure that was written, and the same in words."""

    output: str
    figure: str
    bytes: Positive
    words: str


class ReportResults(Struct, frozen=True):
    """report: the page that was written."""

    output: str
    bytes: Positive
    sections: tuple[str, ...]
    figures: Count
    tables: Count


RESULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "finetune": {"": TrainingResults},
    "train-qat": {"": TrainingResults},
    "extract": {"": ExtractResults},
    "moments": {"": MomentsResults},
    "combine": {"": OutputResults},
    "patch": {"": OutputResults},
    "quantize": {"compared": ComparedResults, "": QuantizeResults},
    "export": {"": ExportResults},
    "eval": {"": EvalResults},
    "sweep-lambda": {"objective": AgreementResults, "": SweepResults},
    "transfer": {"": Json},
    "advise": {"": AdviceResults},
    "inspect": {"": Json},
    "plot": {"": PlotResults},
    "report": {"": ReportResults},
}
"""What the results of each command are: the first row whose key they have; "" stands for any."""

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
