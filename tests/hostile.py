"""Reports that a pod under somebody else's control might send: a whole one, spoilt at one place after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from builders import make_checkpoint, make_progress, make_recovery
from finetune_api.report import EarlyStop, Report
from finetune_api.status import (
    DataError,
    DataStatus,
    JobWarning,
    Metrics,
    OutputStatus,
    Resolved,
    ResolvedFile,
    ResolvedModel,
    TokenStatistics,
)
from finetune_api.trainer import Stage

Json = dict[str, Any]
LEAVES: tuple[Any, ...] = (
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    10**400,
    -(10**400),
    1e30,
    1.5,
    1.7976931348623157e308,
    float("nan"),
    float("inf"),
    True,
    "",
    "x" * 64,
    "x" * 300,
    "x" * 5000,
    "\x00\u2028\U0001f600" * 20,
    "2026-02-30T00:00:00Z",
    "2026-02-03",
    "20260203T000000Z",
    None,
    [],
    {},
    {"x" * 300: 1},
    [[]] * 1000,
    {str(n): n for n in range(1000)},
)
"""What is put in the place of every value."""


def whole() -> Report:
    """A report with something in every field."""
    return Report(
        job_uid="job",
        pod_uid="pod",
        stage=Stage.TRAIN,
        resumed_from_step=1,
        progress=make_progress(7).model_copy(
            update={"epoch": 0.5, "tokens": 9, "tokens_per_second": 1.5, "estimated_remaining_seconds": 9}
        ),
        early_stop=EarlyStop(metric="loss", step=7, evaluations=1, best_step=6, best_value=0.5),
        metrics=Metrics(train={"loss": 0.5}, eval={"loss": 0.5}),
        checkpoints=(make_checkpoint(10).model_copy(update={"best": True, "metrics": {"evalLoss": 0.5}}),),
        recovery=make_recovery(7),
        warnings=(JobWarning(reason="FewSteps", message="few", step=1),),
        data=DataStatus(
            format="preference",
            rows=9,
            pairs=9,
            validation_rows=1,
            tokens={"prompt": TokenStatistics(p50=1, p95=2, max=3)},
            total_tokens=9,
            max_tokens=9,
            warnings=("odd",),
            errors=(DataError(line=1, field="a", code="MissingField", message="x"),),
            error_count=1,
            report_uri="pvc://a/b",
        ),
        resolved=Resolved(
            model=ResolvedModel(source="org/tiny", revision="main", parameters=9),
            training_file=ResolvedFile(sha256="ab" * 32, size_bytes=9),
            validation_file=ResolvedFile(sha256="ab" * 32, size_bytes=9, revision="main"),
            max_seq_length=128,
            total_steps=20,
        ),
        output=OutputStatus(
            adapter_uri="pvc://a/b", model_uri="pvc://a/b", merged_uri="pvc://a/b", report_uri="pvc://a/b"
        ),
    )


def spoilt(document: Json) -> Iterator[tuple[str, Json]]:
    """(place, document) with every value in `document` replaced by each of LEAVES, and every list made longer."""
    for path in _paths(document):
        for value in LEAVES:
            yield _dotted(path), _with(document, path, value)
        found = _at(document, path)
        if isinstance(found, list):
            for length in (20, 34, 35, 1000):
                yield f"{_dotted(path)} x {length}", _with(document, path, found * length)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _paths(child, (*path, key))


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def _with(document: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = copy.deepcopy(document)
    _at(changed, path[:-1])[path[-1]] = value
    return changed


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
