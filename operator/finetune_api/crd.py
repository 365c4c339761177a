"""From a model to its CustomResourceDefinition: pure, so that the CRD can never say anything else than the models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.runtime import FineTuneRuntime

Schema = dict[str, Any]
KEPT = frozenset(
    {
        "type",
        "enum",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minimum",
        "maximum",
        "required",
    }
)
SIZES = (
    ("characters", "minLength", "maxLength"),
    ("items", "minItems", "maxItems"),
    ("entries", "minProperties", "maxProperties"),
)
JOB_COLUMNS: list[Schema] = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Step", "type": "string", "jsonPath": ".status.progress.display"},
    {"name": "Loss", "type": "number", "jsonPath": ".status.metrics.train.loss"},
    {"name": "Accuracy", "type": "number", "jsonPath": ".status.metrics.eval.rewardAccuracy", "priority": 1},
    {"name": "Model", "type": "string", "jsonPath": ".status.resolved.model.source", "priority": 1},
    {"name": "Output", "type": "string", "jsonPath": ".status.output.adapterUri", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
RUNTIME_COLUMNS: list[Schema] = [
    {"name": "Default", "type": "boolean", "jsonPath": ".spec.default"},
    {"name": "Image", "type": "string", "jsonPath": ".spec.image"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def job_crd() -> Schema:
    """The CustomResourceDefinition of FineTuneJob."""
    return _crd(
        FineTuneJob,
        scope="Namespaced",
        kinds={
            "kind": names.JOB_KIND,
            "listKind": f"{names.JOB_KIND}List",
            "plural": names.JOB_PLURAL,
            "singular": names.JOB_SINGULAR,
            "shortNames": [names.JOB_SHORT],
            "categories": [names.JOB_CATEGORY],
        },
        columns=JOB_COLUMNS,
        extra={
            "subresources": {"status": {}},
            "selectableFields": [
                {"jsonPath": ".spec.runtime"},
                {"jsonPath": ".spec.model"},
                {"jsonPath": ".status.phase"},
            ],
        },
    )


def runtime_crd() -> Schema:
    """The CustomResourceDefinition of FineTuneRuntime."""
    return _crd(
        FineTuneRuntime,
        scope="Cluster",
        kinds={
            "kind": names.RUNTIME_KIND,
            "listKind": f"{names.RUNTIME_KIND}List",
            "plural": names.RUNTIME_PLURAL,
            "singular": names.RUNTIME_SINGULAR,
            "shortNames": [names.RUNTIME_SHORT],
            "categories": [names.JOB_CATEGORY],
        },
        columns=RUNTIME_COLUMNS,
        extra={},
    )


def _crd(model: type[BaseModel], *, scope: str, kinds: Schema, columns: list[Schema], extra: Schema) -> Schema:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kinds['plural']}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": scope,
            "names": kinds,
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": structural_schema(model)},
                    "additionalPrinterColumns": columns,
                    **extra,
                }
            ],
        },
    }


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a whole object: the model's, with Kubernetes' own parts left open."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(document, document.get("$defs", {}))
    for part in ("apiVersion", "kind"):
        schema["properties"][part] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    return schema


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """One node of pydantic's JSON Schema in Kubernetes' dialect: no references, nulls, titles or unions."""
    node = _inlined(node, definitions)
    if node.get("x-kubernetes-int-or-string"):
        return _described(node, {k: v for k, v in node.items() if k not in ("title", "default")})
    schema = {key: value for key, value in node.items() if key in KEPT or key.startswith("x-kubernetes-")}
    if "const" in node:
        schema["enum"] = [node["const"]]
    _add_children(schema, node, definitions)
    _add_exclusive_bounds(schema, node)
    if node.get("default") is not None:
        schema["default"] = {} if schema.get("type") == "object" else node["default"]
    return _described(node, schema)


def _inlined(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Follow `$ref`, and take a nullable for what it is when present: absence says the same as null."""
    choices = node.get("anyOf", [])
    if not node.get("x-kubernetes-int-or-string") and any(c.get("type") == "null" for c in choices):
        (only,) = [c for c in choices if c.get("type") != "null"]
        node = {**only, **{k: v for k, v in node.items() if k != "anyOf"}}
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return _inlined({**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    return node


def _add_children(schema: Schema, node: Schema, definitions: dict[str, Schema]) -> None:
    if "properties" in node:
        schema["properties"] = {k: _structural(v, definitions) for k, v in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict) and "x-kubernetes-preserve-unknown-fields" not in node:
        schema["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    if isinstance(node.get("items"), dict):
        schema["items"] = _without_defaults(_structural(node["items"], definitions))


def _without_defaults(schema: Schema) -> Schema:
    """Lists are replaced as a whole: a default that the server fills into an item would be a difference for ever."""
    plain = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in plain:
        plain["properties"] = {name: _without_defaults(field) for name, field in plain["properties"].items()}
    return plain


def _add_exclusive_bounds(schema: Schema, node: Schema) -> None:
    """OpenAPI 3.0 says an exclusive bound with a flag, JSON Schema with a number."""
    for inclusive, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            schema[inclusive], schema[exclusive] = node[exclusive], True


def _described(node: Schema, schema: Schema) -> Schema:
    """The field's docstring, with its default and bounds in words: `kubectl explain` shows nothing else."""
    description = " ".join(str(node.get("description", "")).split())
    facts = [f"Default: {_literal(schema['default'])}."] if schema.get("default") not in (None, {}, [], "") else []
    if bounds := _bounds(schema):
        facts.append(f"Bounds: {bounds}.")
    text = " ".join([description, *facts]).strip()
    return {"description": text, **{k: v for k, v in schema.items() if k != "description"}} if text else schema


def _bounds(schema: Schema) -> str:
    """Every bound of a field; a field that is judged by a sentence of its own shows that sentence."""
    if "properties" not in schema and "x-kubernetes-validations" in schema:
        return "; ".join(rule["message"] for rule in schema["x-kubernetes-validations"])
    words = []
    if "minimum" in schema:
        words.append(f"{'>' if schema.get('exclusiveMinimum') else '>='} {_literal(schema['minimum'])}")
    if "maximum" in schema:
        words.append(f"{'<' if schema.get('exclusiveMaximum') else '<='} {_literal(schema['maximum'])}")
    for what, least, most in SIZES:
        if least in schema:
            words.append(f"at least {schema[least]} {what}")
        if most in schema:
            words.append(f"at most {schema[most]} {what}")
    items = schema.get("items", {})
    if items and "properties" not in items and (each := _bounds(items)):
        words.append(f"each: {each}")
    return ", ".join(words)


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
