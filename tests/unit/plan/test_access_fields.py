"""Every field of a job in which a name from outside it can stand is checked against the runtime's access.

The fields are found in the model itself: a new one fails here until it is checked, or is said to be harmless.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from builders import NOW, NOW_TEXT, before_start, make_checkpoint, make_job, make_runtime
from finetune_api.job import JobSpec
from finetune_api.status import Condition, ConditionStatus, JobStatus, Resolved, ResolvedModel
from finetune_operator.plan.decide import decide
from finetune_operator.plan.secrets import secrets_of
from finetune_operator.settings import Settings

OPEN = {
    "namespaces": ["*"],
    "secrets": ["*"],
    "configMaps": ["*"],
    "claims": {"read": ["*"], "write": ["*"]},
    "uriPrefixes": {"read": ["*"], "write": ["*"]},
    "httpsHosts": ["*"],
    "trackingHosts": ["*"],
}
CLOSED: dict[str, Any] = {
    "namespaces": ["*"],
    "secrets": [],
    "configMaps": [],
    "claims": {"read": [], "write": []},
    "uriPrefixes": {"read": [], "write": []},
    "httpsHosts": [],
    "trackingHosts": [],
}
TOKEN = {"hfTokenSecretRef": {"name": "finetune-hf", "key": "token"}}
SECRET = {"name": "theirs", "key": "key"}
MLFLOW = "http://mlflow.theirs.svc:5000/a"
CHECKED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "hfTokenSecretRef.name": [({"hfTokenSecretRef": {"name": "theirs", "key": "token"}}, "secrets")],
    "model": [
        ({"model": "pvc://theirs/model"}, "claims.read"),
        ({"model": "hf://theirs/model"}, "uriPrefixes.read"),
        ({"model": "theirs/model"}, "uriPrefixes.read"),
        *(({"model": f"{scheme}://theirs/model"}, "uriPrefixes.read") for scheme in ("s3", "gs", "az")),
    ],
    "fromHfModel": [({"fromHfModel": "theirs/model"}, "uriPrefixes.read")],
    "fromCheckpoint": [({"model": None, "fromCheckpoint": "first"}, "claims.read")],
    "trainingFile": [
        ({"trainingFile": "pvc://theirs/t.jsonl"}, "claims.read"),
        ({"trainingFile": "configmap://theirs/t.jsonl"}, "configMaps"),
        ({"trainingFile": "hf://datasets/theirs/data/t.jsonl"}, "uriPrefixes.read"),
        *(({"trainingFile": f"{scheme}://theirs/t.jsonl"}, "uriPrefixes.read") for scheme in ("s3", "gs", "az")),
        ({"trainingFile": "https://theirs/t.jsonl"}, "httpsHosts"),
    ],
    "validationFile": [
        ({"validationFile": "pvc://theirs/v.jsonl"}, "claims.read"),
        ({"validationFile": "configmap://theirs/v.jsonl"}, "configMaps"),
        ({"validationFile": "hf://datasets/theirs/data/v.jsonl"}, "uriPrefixes.read"),
        ({"validationFile": "s3://theirs/v.jsonl"}, "uriPrefixes.read"),
        ({"validationFile": "https://theirs/v.jsonl"}, "httpsHosts"),
    ],
    "output.uri": [
        ({"output": {"uri": "pvc://theirs/out"}}, "claims.write"),
        *(({"output": {"uri": f"{scheme}://theirs/out"}}, "uriPrefixes.write") for scheme in ("s3", "gs", "az")),
    ],
    "output.hfRepo": [({"output": {"uri": "pvc://ours/out", "hfRepo": "theirs/model"}, **TOKEN}, "uriPrefixes.write")],
    "tracking.wandb.apiKeySecretRef.name": [({"tracking": {"wandb": {"apiKeySecretRef": SECRET}}}, "secrets")],
    "tracking.wandb.baseUrl": [
        ({"tracking": {"wandb": {}}}, "trackingHosts"),
        ({"tracking": {"wandb": {"baseUrl": "https://theirs:8080"}}}, "trackingHosts"),
    ],
    "tracking.mlflow.trackingUri": [({"tracking": {"mlflow": {"trackingUri": MLFLOW}}}, "trackingHosts")],
    "tracking.mlflow.tokenSecretRef.name": [
        ({"tracking": {"mlflow": {"trackingUri": MLFLOW, "tokenSecretRef": SECRET}}}, "secrets")
    ],
}
"""Path of each field that names something outside the job: specs in which it does, and where the entry belongs."""
HARMLESS = {
    "runtime": "a cluster-scoped object that says itself who may use it (access.namespaces)",
    "hfTokenSecretRef.key": "of a Secret whose name is checked",
    "tracking.wandb.apiKeySecretRef.key": "of a Secret whose name is checked",
    "tracking.mlflow.tokenSecretRef.key": "of a Secret whose name is checked",
    "tracking.wandb.project": "a name on a server whose host is checked",
    "tracking.wandb.entity": "a name on a server whose host is checked",
    "tracking.wandb.name": "a name on a server whose host is checked",
    "tracking.mlflow.experiment": "a name on a server whose host is checked",
    "tracking.mlflow.name": "a name on a server whose host is checked",
    "data.chatTemplate": "text that the trainer renders in a sandbox",
    "trainingType.lora.trainableModules": "names of layers",
    "hfModelRevision": "a revision of a repository that is checked",
    "managedBy": "who leaves the job alone: never looked up",
    "suffix": "a word in the output's name",
    "hyperparameters.batchSize": "a number or max",
    "resources.cpu": "a quantity",
    "resources.memory": "a quantity",
}


def parts(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation."""
    if typing.get_origin(annotation) is typing.Annotated:
        yield from parts(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, dict):
        for inside in typing.get_args(annotation):
            yield from parts(inside)
    else:
        yield annotation


def texts(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Paths of the fields in which a user can write text."""
    for name, field in model.model_fields.items():
        step = f"{path}{field.alias or name}"
        for kind in parts(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from texts(kind, f"{step}.")
            elif kind is Any or (isinstance(kind, type) and issubclass(kind, str) and not issubclass(kind, Enum)):
                yield step


def accepted(access: dict[str, Any], spec: dict[str, Any]) -> Condition:
    """The Accepted condition of a job whose other fields name nothing that `access` refuses."""
    done = Condition(
        type="Complete", status=ConditionStatus.TRUE, reason="Succeeded", message="", last_transition_time=NOW_TEXT
    )
    made = JobStatus(
        conditions=(done,),
        checkpoints=(make_checkpoint(20, job="first"),),
        resolved=Resolved(model=ResolvedModel(source="hf://org/tiny"), lora_rank=8, lora_alpha=16.0),
    )
    parent = make_job("first", uid="other").model_copy(update={"status": made})
    observed = before_start(make_runtime(access=access), parent=parent)
    status = decide(make_job(**spec), observed, Settings(), NOW).status
    return next(c for c in status.conditions if c.type == "Accepted")


def closed_for(where: str) -> dict[str, Any]:
    """An access that allows everything but in the list `where`, which has what the other fields of a test name."""
    mine = {"claims.read": ["finetune-data"], "uriPrefixes.read": ["hf://org/"]}.get(where, [])
    access = {**OPEN}
    block, _, word = where.partition(".")
    access[block] = {**OPEN[block], word: CLOSED[block][word] + mine} if word else CLOSED[block]  # type: ignore[dict-item,index]
    return access


def test_every_text_in_a_job_is_checked_or_harmless():
    found = set(texts(JobSpec))
    assert found == CHECKED.keys() | HARMLESS.keys()
    naming = {path for path in found if path.endswith("SecretRef.name")}
    assert {f"{use.field}.name" for path in naming for use in secrets_of(make_job(**CHECKED[path][0][0]))} == naming


CASES = [(field, spec, where) for field, cases in CHECKED.items() for spec, where in cases]


@pytest.mark.parametrize(("field", "spec", "where"), CASES, ids=[f"{f}-{w}-{i}" for i, (f, _, w) in enumerate(CASES)])
def test_a_field_outside_access_is_refused_with_the_entry_to_add(field, spec, where):
    refused = accepted(closed_for(where), spec)
    assert (refused.status, refused.reason) == (ConditionStatus.FALSE, "SourceNotAllowed")
    assert refused.message.startswith(f"{field} is ")
    assert f"to its spec.access.{where}" in refused.message
    (entry,) = (part for part in refused.message.split('"')[1::2])
    block, _, word = where.partition(".")
    access = closed_for(where)
    there = access[block][word] if word else access[block]
    more = [*there, entry]
    assert accepted({**access, block: {**access[block], word: more} if word else more}, spec).reason != refused.reason


def test_the_default_access_takes_secrets_by_their_prefix_alone():
    default = {key: value for key, value in OPEN.items() if key != "secrets"}
    assert accepted(default, {"hfTokenSecretRef": {"name": "finetune-hf", "key": "token"}}).reason != "SourceNotAllowed"
    assert accepted(default, {"hfTokenSecretRef": {"name": "my-hf", "key": "token"}}).reason == "SourceNotAllowed"
