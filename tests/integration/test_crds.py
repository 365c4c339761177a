"""The two kinds as people meet them: installed by either kind of apply, explained, listed, selected, waited for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_api.crd import JOB_COLUMNS, job_crd, runtime_crd
from judges import collection
from manifests import ROOT, job, runtime

NOBODY = "example.com/tests"
CRDS = ["finetunejobs.finetune.dev", "finetuneruntimes.finetune.dev"]


@pytest.mark.parametrize("flags", [[], ["--server-side", "--force-conflicts"]], ids=["client-side", "server-side"])
def test_crds_are_accepted_without_warning(plane, flags) -> None:
    done = plane.run("kubectl", "apply", *flags, "-f", str(ROOT / "crds"))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr.replace("Warning: resource customresourcedefinitions/", "")
    conditions = json.loads(plane.kubectl("get", "crd", *CRDS, "--output", "json"))["items"]
    for crd in conditions:
        states = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
        assert states["Established"] == "True"
        assert "NonStructuralSchema" not in states


@pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])
def test_kubectl_explains_every_field(plane, crd) -> None:
    kind = crd["spec"]["names"]["singular"]
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    names = _field_names(plane.kubectl("explain", f"{kind}.spec", "--recursive"))
    assert names == _names(schema)
    for path, field in _leaves(schema):
        shown = " ".join(plane.kubectl("explain", f"{kind}.spec.{path}").split())
        assert " ".join(field["description"].split()) in shown


def test_explain_gives_default_and_bounds(plane) -> None:
    shown = " ".join(plane.kubectl("explain", "finetunejob.spec.hyperparameters.warmupRatio").split())
    assert "Default: 0." in shown
    assert "Bounds: >= 0, <= 1." in shown


def test_columns_show_the_status(plane, api, namespace) -> None:
    where = collection(job(), namespace)
    api.post(where, untouched("shown")).must()
    status = {
        "phase": "Running",
        "progress": {"display": "120/460", "step": 120, "totalSteps": 460},
        "metrics": {"train": {"loss": 0.41}, "eval": {"rewardAccuracy": 0.78}},
        "resolved": {"model": {"source": "org/model"}},
        "output": {"adapterUri": "pvc://finetune-models/shown/adapter"},
    }
    api.patch(f"{where}/shown/status", {"status": status}).must()
    header, row = plane.kubectl("get", "ftj", "--namespace", namespace, "--output", "wide").splitlines()
    assert header.split() == ["NAME", *(column["name"].upper() for column in JOB_COLUMNS)]
    expected = ["shown", "Running", "120/460", "0.41", "0.78", "org/model", "pvc://finetune-models/shown/adapter"]
    assert row.split()[:-1] == expected
    narrow = plane.kubectl("get", "finetunejob", "--namespace", namespace).splitlines()[0]
    assert narrow.split() == ["NAME", "PHASE", "STEP", "LOSS", "AGE"]
    assert "shown" in plane.kubectl("get", "ml", "--namespace", namespace)


def test_jobs_are_selected_by_phase_runtime_and_model(plane, api, namespace) -> None:
    where = collection(job(), namespace)
    for name, phase, change in [("a", "Running", {"runtime": "gpu"}), ("b", "Failed", {"model": "org/other"})]:
        api.post(where, untouched(name, **change)).must()
        api.patch(f"{where}/{name}/status", {"status": {"phase": phase}}).must()
    for selector, name in [("status.phase=Running", "a"), ("spec.runtime=gpu", "a"), ("spec.model=org/other", "b")]:
        found = plane.kubectl("get", "ftj", "-n", namespace, "--field-selector", selector, "--output", "name")
        assert found.split() == [f"finetunejob.finetune.dev/{name}"]


def test_kubectl_waits_for_complete(plane, api, namespace) -> None:
    where = collection(job(), namespace)
    api.post(where, untouched("waited")).must()
    condition = {
        "type": "Complete",
        "status": "True",
        "reason": "Succeeded",
        "message": "done",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    api.patch(f"{where}/waited/status", {"status": {"conditions": [condition]}}).must()
    plane.kubectl("wait", "-n", namespace, "--for=condition=Complete", "ftj/waited", "--timeout=5s")


def test_status_is_a_subresource(api, namespace) -> None:
    where = collection(job(), namespace)
    made = api.post(where, {**untouched("split"), "status": {"phase": "Completed"}}).must()
    assert "status" not in made
    changed = api.patch(f"{where}/split/status", {"status": {"phase": "Pending"}, "spec": {"suffix": "no"}}).must()
    assert changed["status"]["phase"] == "Pending"
    assert "suffix" not in changed["spec"]
    assert changed["metadata"]["generation"] == 1


def test_runtimes_are_cluster_scoped(plane, api) -> None:
    api.post(collection(runtime(), ""), runtime("listed", default=True)).must()
    row = plane.kubectl("get", "ftr", "listed", "--no-headers").split()
    assert row[:3] == ["listed", "true", "trainer:1"]
    api.delete(f"{collection(runtime(), '')}/listed").must()


def untouched(name: str, **spec: Any) -> dict[str, Any]:
    """A job whose status no operator writes."""
    return job(name, managedBy=NOBODY, **spec)


def _field_names(explained: str) -> set[str]:
    body = explained.split("FIELDS:", 1)[1]
    return {line.split()[0] for line in body.splitlines() if "\t<" in line}


def _names(schema: dict[str, Any]) -> set[str]:
    found = set()
    for name, field in schema.get("properties", {}).items():
        found |= {name} | _names(field) | _names(field.get("items", {})) | _names(field.get("additionalProperties", {}))
    return found


def _leaves(schema: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, field in schema.get("properties", {}).items():
        inner = {**field, **field.get("items", {})} if "items" in field else field
        found += _leaves(inner, f"{prefix}{name}.") or [(f"{prefix}{name}", field)]
    return found
