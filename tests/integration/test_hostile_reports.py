"""A pod under somebody else's control reports what it likes: what is believed of it, the API server must take.

Otherwise one value would keep the whole status, conditions and all, from being written.
"""

from __future__ import annotations

import asyncio
import json

from pydantic import ValidationError

from builders import NOW_TEXT, make_child, make_job, make_pod
from finetune_api import names
from finetune_api.report import Report
from finetune_api.status import JobStatus, Resolved, ResolvedModel
from finetune_api.trainer import Stage
from finetune_operator.client import FINETUNE_JOBS, Cluster, Refused
from finetune_operator.plan.told import retold
from hostile import spoilt, whole
from judges import collection
from manifests import job

POD = make_pod(make_child(make_job(), Stage.TRAIN))
BEFORE = JobStatus(start_time=NOW_TEXT, resolved=Resolved(model=ResolvedModel(source="org/tiny")))


def test_what_is_believed_of_a_hostile_report_the_api_server_takes(plane, api, namespace) -> None:
    api.post(collection(job(), namespace), job("mine", runtime="not-there")).must()
    document = whole().model_dump(mode="json", exclude_none=True)
    bodies = [(place, json.dumps(hostile)) for place, hostile in spoilt(document)]
    believed = [(place, report) for place, body in bodies if (report := _read(body)) is not None]
    assert len(believed) > 250, "or nothing was proved"

    async def write_all() -> list[str]:
        cluster = await Cluster.connect(str(plane.kubeconfig), in_cluster=False)
        head = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND}
        whose, refused = {**head, "metadata": {"name": "mine", "namespace": namespace}}, []
        try:
            for place, report in believed:
                try:
                    status = retold(BEFORE, POD, report, NOW_TEXT, 2)
                    await cluster.apply_status(FINETUNE_JOBS, {**whose, "status": status.to_json()})
                except Refused as refusal:
                    refused.append(f"{place}: {refusal}")
        finally:
            await cluster.close()
        return refused

    assert asyncio.run(write_all()) == []


def _read(body: str) -> Report | None:
    try:
        return Report.model_validate_json(body)
    except ValidationError:
        return None
