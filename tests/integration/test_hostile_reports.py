"""A pod under somebody else's control reports what it likes: what is believed of it, the API server must take.

Otherwise one value would keep the whole status, conditions and all, from being written.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from builders import NOW_TEXT, make_child, make_job, make_pod
from finetune_api import names
from finetune_api.report import Report
from finetune_api.status import JobStatus, Resolved, ResolvedModel
from finetune_api.trainer import Stage
from finetune_operator.plan.told import retold
from hostile import spoilt, whole
from judges import collection
from manifests import job

POD = make_pod(make_child(make_job(), Stage.TRAIN))


def test_what_is_believed_of_a_hostile_report_the_api_server_takes(api, namespace) -> None:
    jobs = collection(job(), namespace)
    api.post(jobs, job("mine", runtime="not-there")).must()
    document, believed, refused = whole().model_dump(mode="json", exclude_none=True), 0, []
    for place, hostile in spoilt(document):
        report = _read(json.dumps(hostile))
        if report is None:
            continue
        believed += 1
        answer = _write(api, f"{jobs}/mine", _status(report))
        if not answer.ok:
            refused.append(f"{place}: {answer.message[:300]}")
    assert believed > 250, "or nothing was proved"
    print(*refused, sep="\n")
    assert refused == []


def _read(body: str) -> Report | None:
    try:
        return Report.model_validate_json(body)
    except ValidationError:
        return None


def _status(report: Report) -> dict[str, Any]:
    """The status of a started job after that report."""
    before = JobStatus(start_time=NOW_TEXT, resolved=Resolved(model=ResolvedModel(source="org/tiny")))
    return retold(before, POD, report, NOW_TEXT, 2).to_json()


def _write(api: Any, path: str, status: dict[str, Any]) -> Any:
    """Write a status as the operator does."""
    name = path.rsplit("/", 1)[-1]
    body = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "metadata": {"name": name}, "status": status}
    where = f"{path}/status?fieldManager={names.FIELD_MANAGER}&force=true"
    return api.request("PATCH", where, body, "application/apply-patch+yaml")
