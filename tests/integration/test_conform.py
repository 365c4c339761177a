"""What the chart renders and the examples show is what the API server's own schemas describe, to the last field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubelet import wait_for
from manifests import ROOT
from rendering import VALUES, template
from schemas import conform, export

NOT_OURS = ("ServiceMonitor", "PrometheusRule")
OF_KUEUE = ("ResourceFlavor", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass")
"""Kinds of the Prometheus operator and of Kueue, whose schemas this server has not."""
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if path.name != "kustomization.yaml")


@pytest.fixture(scope="module")
def schemas(plane, api, tmp_path_factory) -> Path:
    """A file for each kind of the server."""
    ours = "apis/finetune.dev/v1alpha1"
    wait_for(lambda: ours in api.get("/openapi/v3").must()["paths"], "our kinds in what the server publishes")
    folder = tmp_path_factory.mktemp("schemas")
    assert export(api, folder) > 50
    assert (folder / "finetunejob-finetune-v1alpha1.json").exists()
    return folder


@pytest.mark.parametrize("values", VALUES, ids=["default", "namespaces", "digest", "everything", "several"])
def test_the_chart_conforms(schemas, values) -> None:
    done = template(values)
    assert done.returncode == 0, done.stderr
    said = conform(schemas, done.stdout, *NOT_OURS)
    assert said["resources"] == []
    assert said["summary"]["valid"] > 5
    assert said["summary"]["skipped"] == (2 if "metrics" in values else 0)


def test_the_examples_conform(schemas) -> None:
    said = conform(schemas, "\n---\n".join(path.read_text() for path in EXAMPLES), *OF_KUEUE)
    assert [(r["name"], r["msg"]) for r in said["resources"]] == []
    assert said["summary"]["valid"] + said["summary"]["skipped"] >= len(EXAMPLES)
    assert said["summary"]["valid"] > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"replicas": "two"}}, "replicas"),
        ({"spec": {"replica": 2}}, "replica"),
        ({"kind": "Deploiment"}, "could not find schema"),
    ],
)
def test_what_does_not_conform_is_told(schemas, change, message) -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}
    (told,) = conform(schemas, json.dumps(deployment | change))["resources"]
    assert told["status"] in ("statusInvalid", "statusError")
    assert message in told["msg"]


def test_a_job_that_does_not_conform_is_told(schemas) -> None:
    wrong = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}}
    (told,) = conform(schemas, json.dumps({**wrong, "spec": {"trainingFiles": "pvc://a/b"}}))["resources"]
    assert "trainingFiles" in told["msg"]
