"""Generated manifests: a valid one, and up to two of its fields replaced by something at or beyond a border.

The borders come from the generated schema itself, so a new field is tested without a line here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from finetune_api.crd import job_crd, runtime_crd
from judges import pydantic_verdict
from manifests import INVALID, expected_message, job, read, runtime

Path = tuple[str | int, ...]
ODD: list[Any] = [None, 0, -1, 1, 1.0, 2.0, 0.5, 1.5, 1e-320, 1e30, 2**53, 2**63, True, False, "", "1", "max", "a\n"]
ODD += [[], {}, [None], [{}], {"type": "DPO"}, {"type": "Full"}, {"unknown": 1}]
WORDS: dict[str, list[Any]] = {
    "model": [
        "model",
        "org/model",
        "org/model@main",
        "hf://org/model",
        "pvc://finetune-models",
        "a/b/c",
        "s3://b/k",
        "/",
    ],
    "fromHfModel": ["me/custom", "me/custom@v1", "hf://me/custom", "custom", "pvc://claim/model", "me/custom@a/b"],
    "hfModelRevision": ["main", "v1.0", "0123abcd", "refs/pr/1", "a" * 128, "a" * 129],
    "targetModules": [["q_proj"], ["q proj"], ["a"] * 65],
    "fromCheckpoint": [
        "support-sft",
        "support-sft:120",
        "support-sft:best",
        "support-sft:bestest",
        "Support",
        "a:1234567890",
        ":1",
        "a" * 53,
    ],
    "trainingFile": [
        "pvc://claim/a/b.jsonl",
        "configmap://map/key",
        "hf://datasets/o/n/a.jsonl",
        "pvc://c",
        "https://x",
    ],
    "validationFile": ["pvc://claim/eval.jsonl", "hf://o/n@v1/a.jsonl", "pvc://c/../d", "pvc://c//d", "file:///a"],
    "uri": ["pvc://claim", "pvc://claim/a/.b", "pvc://claim/{namespace}/{name}", "pvc://claim/{uid}", "hf://me/repo"],
    "source": ["hf://org/model@0123abcd", "pvc://claim/model", "org/model", "https://host/model"],
    "hfTokenSecretRef": [{"name": "finetune-hf", "key": "token"}, {"name": "x"}, {"key": "token"}],
    "key": ["token", "a.b_c-D", "a/b", "x" * 253, "x" * 254],
    "suffix": ["support", "a.b-c", "Support", "-a", "a" * 40, "a" * 41, "é"],
    "trainableModules": [["all-linear"], ["q_proj", "q_proj"], ["q proj"], ["a"] * 65, ["a" * 129], [1]],
    "cpu": [1, 8, "500m", "0.5", "8", "0", "0m", "8Gi", 0.5],
    "memory": ["64Gi", "1.5Gi", 1073741824, "0", "1e9", "64 Gi", -1],
    "gpuMemory": ["141Gi", 85899345920, "80G", "0", "80GB", "-1Gi"],
    "batchSize": ["max", 1, 8, 65536, 65537, "Max", "8", 8.0, 8.5],
    "gpuResourceName": ["nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "memory", "a.b/", "a/b/c", "A.b/c"],
    "nodes": [1, 2, 64, 65, 0, 2.0, 2.5, "2", True],
    "claimTemplate": [
        {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}},
        {"spec": {}},
        {"spec": {}, "labels": {"team": "ml"}, "annotations": {"note": ""}},
        {"spec": {}, "metadata": {}},
        {"spec": [], "labels": {}},
        {"labels": {}},
    ],
    "imagePullSecrets": [
        [{"name": "registry"}],
        [{"name": "a"}, {"name": "a"}],
        [{"name": ""}],
        [{"name": "x" * 254}],
        [{"name": "a", "key": "b"}],
        [{"name": "a"}] * 16,
        [{"name": "a"}] * 17,
        ["registry"],
    ],
    "runtime": ["gpu", "x" * 253, "x" * 254],
    "project": ["tuning", "a project é", "a/b", "", "x" * 128, "x" * 129, "a\tb"],
    "entity": ["team", "a:b"],
    "experiment": ["Default", "/Users/me/dpo"],
    "baseUrl": ["https://api.wandb.ai", "http://wandb.ml.svc:8080/", "api.wandb.ai", "https://a@b", "ftp://host"],
    "trackingUri": [
        "http://127.0.0.1:5000",
        "https://mlflow.example.com/a/b",
        "https://h:999999",
        "https://h/?q=1",
        "file:///runs",
        "https://H",
        "http://" + "a" * 254,
    ],
    "apiKeySecretRef": [{"name": "finetune-wandb", "key": "key"}, {"name": "x"}],
    "tokenSecretRef": [{"name": "finetune-mlflow", "key": "token"}, {"name": "A", "key": "token"}],
    "managedBy": [
        "finetune.dev/operator",
        "a.b/c/d",
        "operator",
        "/a",
        "a/",
        "A.b/c",
        "a/" + "b" * 61,
        "a/" + "b" * 62,
    ],
}


def _schema(crd: dict[str, Any]) -> dict[str, Any]:
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def fields(schema: dict[str, Any], path: Path = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Every field of a spec with its path, blocks and the first of a list of blocks included."""
    found = []
    for name, field in schema.get("properties", {}).items():
        found += [((*path, name), field), *fields(field, (*path, name))]
        found += fields(field.get("items", {}), (*path, name, 0))
    return found


def _fitting(name: str, schema: dict[str, Any]) -> list[Any]:
    """Values that the field takes, and its borders with one step to either side."""
    if "enum" in schema:
        return [*schema["enum"], schema["enum"][0].lower(), "Other"]
    numbers: list[Any] = [schema["minimum"] + 1, schema["minimum"] + 0.5] if "minimum" in schema else []
    for border in (schema.get("minimum"), schema.get("maximum")):
        if border is not None:
            numbers += [border, border + 1, border - 1, float(border)]
    if schema.get("type") == "number":
        numbers += [number / 2 for number in numbers]
    if schema.get("type") == "boolean":
        return [True, False]
    longest = ["x", "x" * schema["maxLength"], "x" * (schema["maxLength"] + 1)] if "maxLength" in schema else []
    if schema.get("type") == "array":
        text = schema["items"].get("type") == "string"
        longest = [[], ["x"], ["x", "y"], ["x"] * (schema["maxItems"] + 1)] if text else [[], [{"name": "x"}]]
    if "maxProperties" in schema:
        many = {f"k{i}": "v" for i in range(schema["maxProperties"] + 1)}
        longest = [{}, {"key": "value"}, {"key": ""}, many, {"key": 1}]
    return numbers + WORDS.get(name, longest)


def _changes(schema: dict[str, Any]) -> st.SearchStrategy[tuple[Path, Any]]:
    """One field and what it becomes: mostly something of its kind."""
    all_fields = fields(schema)

    def values(field: tuple[Path, dict[str, Any]]) -> st.SearchStrategy[tuple[Path, Any]]:
        path, form = field
        fitting = _fitting(str(path[-1]), form)
        share = 3 * len(ODD) // len(fitting) if fitting else 0
        return st.tuples(st.just(path), st.sampled_from(fitting * share + ODD))

    return st.sampled_from(all_fields).flatmap(values)


def _applied(manifest: dict[str, Any], changes: list[tuple[Path, Any]]) -> dict[str, Any]:
    made = copy.deepcopy(manifest)
    for path, value in changes:
        node: Any = made["spec"]
        for step, below in pairwise(path):
            block = [{}] if isinstance(below, int) else {}
            there = node[step] if isinstance(node, list) else node.get(step)
            if not isinstance(there, type(block)) or there == []:
                there = node[step] = block
            node = there
        node[path[-1]] = copy.deepcopy(value)
    return made


def bases() -> list[dict[str, Any]]:
    """Valid jobs: the smallest, one with every block, one that continues another, one with a Secret, one of all
    weights."""
    options = {"beta": 2, "normalizeLogratiosByLength": True, "rpoAlpha": 1, "simpoGamma": 0.5, "referenceFree": False}
    dpo = {"type": "DPO", "dpo": {**options, "labelSmoothing": 0.1}}
    sft = {"type": "SFT", "sft": {"trainOnInputs": "Never"}}
    lora = {"type": "LoRA", "lora": {"rank": 8, "alpha": 16, "dropout": 0.1, "trainableModules": ["q_proj"]}}
    early = {"metric": "nll", "mode": "Min", "patience": 2, "minDelta": 0.01, "warmupEvals": 0}
    evaluated = {"validationFile": "pvc://data/eval.jsonl", "evaluation": {"nEvals": 4, "earlyStopping": early}}
    complete = job(trainingMethod=dpo, trainingType=lora, output={"merge": True}, **evaluated)
    continued = job(fromCheckpoint="support-sft:12", trainingMethod=sft)
    del continued["spec"]["model"]
    private = job(hfTokenSecretRef={"name": "finetune-hf", "key": "token"})
    own = job(model="org/model", fromHfModel="me/custom", hfModelRevision="v1")
    whole = job(trainingType={"type": "Full"}, hyperparameters={"batchSize": "max"})
    return [job(), complete, continued, own, private, whole]


def edits(manifest: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The manifest with at most one field of its spec replaced."""
    return st.builds(_applied, st.just(manifest), st.lists(_changes(_schema(job_crd())), max_size=1))


def edits_of_a_cancelled_job(manifest: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The manifest with a field changed that has a transition rule of its own, and at most one other."""
    changes: list[tuple[Path, Any]] = [(("cancel",), value) for value in (False, None)]
    changes += [(("managedBy",), value) for value in ("finetune.dev/operator", "a.b/c/d", None)]
    return _with_one_more(manifest, changes, _schema(job_crd()))


def _with_one_more(
    manifest: dict[str, Any], changes: list[tuple[Path, Any]], schema: dict[str, Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """The manifest with one of `changes`, and at most one of any kind."""
    both = st.builds(lambda one, more: [one, *more], st.sampled_from(changes), st.lists(_changes(schema), max_size=1))
    return st.builds(_applied, st.just(manifest), both)


def jobs() -> st.SearchStrategy[dict[str, Any]]:
    """FineTuneJobs: some with several good changes, most of them valid, the others with one or two odd ones."""
    one = _changes(_schema(job_crd()))
    return st.one_of(_together(), st.builds(_applied, st.sampled_from(bases()), st.lists(one, min_size=1, max_size=2)))


def breaking(rule: str) -> st.SearchStrategy[dict[str, Any]]:
    """FineTuneJobs that break `rule`, unless a further change mends that."""
    changes = st.lists(_changes(_schema(job_crd())), max_size=1)
    return st.builds(_applied, st.sampled_from(_fixtures()[rule]), changes)


def _together() -> st.SearchStrategy[dict[str, Any]]:
    """Several changes of which each alone is good; most are good together, and rules across fields are met."""
    manifests = bases()

    def of(number: int) -> st.SearchStrategy[dict[str, Any]]:
        good = st.lists(st.sampled_from(_good_changes(number)), min_size=1, max_size=4)
        return st.builds(_applied, st.just(manifests[number]), good)

    return st.sampled_from(range(len(manifests))).flatmap(of)


@cache
def _good_changes(number: int) -> list[tuple[Path, Any]]:
    """The changes of one base that leave it valid."""
    base, every = bases()[number], _all_changes(_schema(job_crd()))
    return [change for change in every if pydantic_verdict(_applied(base, [change])).accepted]


def _all_changes(schema: dict[str, Any]) -> list[tuple[Path, Any]]:
    """Each field and whatever it may become."""
    return [(path, value) for path, form in fields(schema) for value in (*_fitting(str(path[-1]), form), *ODD)]


def job_rules() -> list[str]:
    """The sentences of all rules that a new FineTuneJob may break."""
    return sorted({rule["message"] for rule in validations(job_crd()) if "oldSelf" not in rule["rule"]})


def transition_rules() -> list[str]:
    """The sentences of all rules that a change of a FineTuneJob may break."""
    return sorted({rule["message"] for rule in validations(job_crd()) if "oldSelf" in rule["rule"]})


def runtime_rules() -> list[str]:
    """The sentences of all rules that a FineTuneRuntime may break."""
    return sorted({rule["message"] for rule in validations(runtime_crd())})


def validations(node: Any) -> Iterator[dict[str, str]]:
    """Every CEL rule in a CRD."""
    if isinstance(node, dict):
        yield from node.get("x-kubernetes-validations", [])
        for child in node.values():
            yield from validations(child)
    elif isinstance(node, list):
        for child in node:
            yield from validations(child)


@cache
def _fixtures() -> dict[str, list[dict[str, Any]]]:
    """The fixtures of new jobs that break each rule."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in INVALID:
        documents = read(path)
        if len(documents) == 1 and documents[0]["kind"] == "FineTuneJob":
            found.setdefault(expected_message(path), []).append(documents[0])
    return found


def runtimes() -> st.SearchStrategy[dict[str, Any]]:
    """FineTuneRuntimes, about half of them valid."""
    bases = [runtime(), _runtime_with_a_model(), runtime(access={"claims": {"read": ["a", "b"]}})]
    changes = st.lists(_changes(_schema(runtime_crd())), max_size=2)
    return st.builds(_applied, st.sampled_from(bases), changes)


def runtimes_breaking(rule: str) -> st.SearchStrategy[dict[str, Any]]:
    """FineTuneRuntimes that break `rule`, unless a further change mends that."""
    base, schema = _runtime_with_a_model(), _schema(runtime_crd())
    changes = [change for change in _all_changes(schema) if rule in pydantic_verdict(_applied(base, [change])).rules]
    return _with_one_more(base, changes, schema)


def _runtime_with_a_model() -> dict[str, Any]:
    models = [{"name": "org/model", "source": "hf://org/model", "limits": {"lora": {"maxRank": 64}}}]
    return runtime(models=models, default=True)
