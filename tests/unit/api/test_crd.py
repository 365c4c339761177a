"""From models to CRDs: Kubernetes' dialect of a schema, and documentation in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.crd import job_crd, runtime_crd
from finetune_api.job import JobSpec

SIZES = {f"{end}{what}" for end in ("min", "max") for what in ("Length", "Items", "Properties", "imum")}
KEYWORDS = SIZES | {"exclusiveMinimum", "exclusiveMaximum", "type", "enum", "format", "required", "properties"}
KEYWORDS |= {"additionalProperties", "items", "default", "description", "anyOf"}


def schema_of(crd: dict[str, Any]) -> dict[str, Any]:
    """The schema of the whole object."""
    return dict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def spec_field(path: str) -> dict[str, Any]:
    """A field of FineTuneJob's spec."""
    node = schema_of(job_crd())["properties"]["spec"]
    for step in path.split("."):
        node = node["properties"][step]
    return dict(node)


@pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])
def test_only_what_a_structural_schema_knows(crd) -> None:
    def keys(node: Any) -> set[str]:
        others = [node[key] for key in ("items", "additionalProperties") if isinstance(node.get(key), dict)]
        inner = [*node.get("properties", {}).values(), *others]
        return {key for key in node if not key.startswith("x-kubernetes-")}.union(*(keys(child) for child in inner))

    assert keys(schema_of(crd)) <= KEYWORDS


def test_the_schema_has_the_models_fields() -> None:
    names = {field.alias for field in JobSpec.model_fields.values()}
    assert set(schema_of(job_crd())["properties"]["spec"]["properties"]) == names


def test_exclusive_bounds_are_flags() -> None:
    beta = spec_field("trainingMethod.dpo.beta")
    assert (beta["minimum"], beta["exclusiveMinimum"], beta["maximum"]) == (0, True, 100)
    assert "exclusiveMaximum" not in beta


@pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])
def test_bounds_are_whole_numbers(crd) -> None:
    """The API server cuts a bound down to one where the value is one: `maximum: 0.5` with
    `exclusiveMaximum` refuses 0."""

    def bounds(node: object) -> Iterator[float]:
        if isinstance(node, dict):
            yield from (node[key] for key in ("minimum", "maximum") if isinstance(node.get(key), int | float))
            for child in node.values():
                yield from bounds(child)

    found = list(bounds(schema_of(crd)))
    assert found
    assert [bound for bound in found if bound != int(bound)] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("hyperparameters.learningRate", "Default: 1e-05. Bounds: > 0, <= 10."),
        ("hyperparameters.batchSize", 'batchSize must be "max" or an integer from 1 to 65536.'),
        ("trainingType.lora.dropout", "Bounds: >= 0, < 1."),
        (
            "trainingType.lora.trainableModules",
            "at least 1 items, at most 64 items, each: trainableModules must hold names of modules such as q_proj"
            " or all-linear.",
        ),
        ("trainingMethod.dpo.labelSmoothing", "Bounds: labelSmoothing must be at least 0 and below 0.5."),
        ("trainingMethod.type", "Default: SFT."),
        ("cancel", "Default: false."),
        ("runtime", "Bounds: at most 253 characters."),
        ("suffix", "have at most 40 characters."),
    ],
)
def test_default_and_bounds_stand_in_the_description(path, words) -> None:
    assert spec_field(path)["description"].endswith(words)


def test_nothing_that_a_user_left_out_is_filled_in_where_absent_means_something() -> None:
    for path in ("trainingMethod.dpo", "trainingType.lora", "resources", "output", "hyperparameters.batchSize"):
        assert "default" not in spec_field(path)
    for block in ("trainingMethod.dpo", "trainingType.lora", "resources", "output"):
        assert not [name for name, field in spec_field(block)["properties"].items() if "default" in field]


def test_blocks_with_defaults_are_filled_in() -> None:
    for block in ("hyperparameters", "evaluation", "checkpointing", "trainingMethod", "hyperparameters.lrScheduler"):
        assert spec_field(block)["default"] == {}


def test_status_is_a_subresource_and_fields_are_selectable() -> None:
    (version,) = job_crd()["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    selectable = {field["jsonPath"] for field in version["selectableFields"]}
    assert selectable == {".spec.runtime", ".spec.model", ".status.phase"}


def test_no_default_stands_in_an_item_of_a_list():
    """Argo CD and client-side apply would see a difference that nobody made."""

    def in_items(node, inside=False):
        here = ["default"] if inside and "default" in node else []
        below = [(field, inside) for field in node.get("properties", {}).values()]
        below += [(node["items"], True)] if "items" in node else []
        return here + [found for child, within in below for found in in_items(child, within)]

    for crd in (job_crd(), runtime_crd()):
        spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        assert in_items(spec) == []
    assert in_items({"items": {"properties": {"a": {"default": 1}}}}) == ["default"]
