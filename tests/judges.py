"""The two judges of a manifest, the API server and pydantic, in one language: sets of refusals.

A broken bound is compared by its path and the bound, a broken rule by its sentence. Where the schema itself is broken
the API server does not look at rules, so rules are compared only when no bound is broken; and where it finds an
unknown field it looks at nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from apiserver import Answer, Api
from finetune_api.base import ApiModel, broken_transitions
from finetune_api.job import FineTuneJob, job_from
from finetune_api.runtime import runtime_from
from manifests import KINDS

BOUND_WORDS = (
    (r"should be greater than or equal to (\S+)", ">= {}"),
    (r"should be less than or equal to (\S+)", "<= {}"),
    (r"should be greater than (\S+)", "> {}"),
    (r"should be less than (\S+)", "< {}"),
    (r"Too long: may not be more than (\d+)", "<= {} long"),
    (r"should be at most (\d+) chars long", "<= {} long"),
    (r"should be at least (\d+) chars long", ">= {} long"),
    (r"Too many: \d+: must have at most (\d+) items", "<= {} items"),
    (r"should have at least (\d+) items", ">= {} items"),
    (r"(?:must have at most|Too many: .* at most) (\d+) (?:items|properties)", "<= {} items"),
)
PYDANTIC_BOUNDS = {
    "greater_than_equal": ">= {ge:g}",
    "less_than_equal": "<= {le:g}",
    "greater_than": "> {gt:g}",
    "less_than": "< {lt:g}",
    "string_too_long": "<= {max_length} long",
    "string_too_short": ">= {min_length} long",
    "too_long": "<= {max_length} items",
    "too_short": ">= {min_length} items",
    "missing": "required",
    "enum": "one of",
    "literal_error": "one of",
    "extra_forbidden": "unknown",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says: broken bounds as `path bound`, broken rules as `sentence`. Both empty = accepted."""

    bounds: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    value: Any = None
    """The object as the judge reads it, absent values filled in."""

    @property
    def accepted(self) -> bool:
        """Whether the manifest may be applied."""
        return not self.bounds and not self.rules

    @property
    def refusals(self) -> frozenset[str]:
        """Everything that was refused."""
        return self.bounds | self.rules


def pydantic_verdict(manifest: dict[str, Any]) -> Verdict:
    """The verdict of the models."""
    parse = job_from if manifest.get("kind") == "FineTuneJob" else runtime_from
    try:
        read: ApiModel = parse(manifest)
    except ValidationError as refused:
        errors = refused.errors(include_url=False)
        rules = frozenset(e["msg"] for e in errors if e["type"] == "rule")
        places = [_dotted(e["loc"]) for e in errors]
        bounds = frozenset(
            f"{place} {_pydantic_bound(error)}"
            for place, error in zip(places, errors, strict=True)
            if error["type"] != "rule" and not _miscounted(place, error, places)
        )
        return Verdict(bounds, rules)
    return Verdict(value=read.to_json()["spec"])


def broken_by_change(old: FineTuneJob, new: FineTuneJob) -> list[str]:
    """The transition rules, of the object and of its spec, that the models see broken."""
    return [*broken_transitions(old, new), *broken_transitions(old.spec, new.spec)]


def server_verdict(api: Api, manifest: dict[str, Any], namespace: str = "default") -> Verdict:
    """The verdict of the API server, by a dry run."""
    where = f"{collection(manifest, namespace)}?dryRun=All&fieldValidation=Strict"
    return verdict_of(api.post(where, as_kubectl_sends(manifest)))


def as_kubectl_sends(value: Any) -> Any:
    """Go writes the number 8.0 as 8, whatever the file says."""
    if isinstance(value, dict):
        return {key: as_kubectl_sends(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_kubectl_sends(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def verdict_of(answer: Answer) -> Verdict:
    """A create's or update's answer as a verdict."""
    if answer.ok:
        return Verdict(value=answer.body.get("spec"))
    if unknown := re.findall(r'unknown field "([^"]+)"', answer.message):
        return Verdict(frozenset(f"{_dotted(path)} unknown" for path in unknown))
    causes = answer.body.get("details", {}).get("causes") or []
    assert causes, f"no causes in {answer.status}: {answer.message}"
    bounds, rules = set(), set()
    for cause in causes:
        field, message = cause.get("field", "<nil>"), cause["message"]
        if "some validation rules were not checked" in message:
            continue
        bound = _server_bound(message)
        if bound is not None:
            bounds.add(f"{_dotted(field)} {bound}")
        else:
            rules.add(_sentence(message))
    return Verdict(frozenset(bounds), frozenset(rules))


def collection(manifest: dict[str, Any], namespace: str) -> str:
    """The URL path under which the object's kind lives."""
    plural = KINDS[manifest["kind"]]
    scope = f"namespaces/{namespace}/" if manifest["kind"] == "FineTuneJob" else ""
    return f"/apis/finetune.dev/v1alpha1/{scope}{plural}"


def disagreement(server: Verdict, ours: Verdict) -> str | None:
    """Where the two differ, or None."""
    if server.accepted != ours.accepted:
        return f"verdict: server {sorted(server.refusals)}, pydantic {sorted(ours.refusals)}"
    if server.accepted:
        same = _without_empty(server.value) == _without_empty(ours.value)
        return None if same else f"read: server {server.value}, pydantic {ours.value}"
    if unknown := {bound for bound in server.bounds if bound.endswith(" unknown")}:
        known = {bound for bound in ours.bounds if bound.endswith(" unknown")} <= unknown
        return None if known else f"unknown fields: server {sorted(unknown)}, pydantic {sorted(ours.bounds)}"
    if _paths(server.bounds) != _paths(ours.bounds):
        return f"paths: server {sorted(server.bounds)}, pydantic {sorted(ours.bounds)}"
    if not ours.bounds <= server.bounds:
        return f"bounds: server {sorted(server.bounds)}, pydantic {sorted(ours.bounds)}"
    if not server.bounds and not ours.rules <= server.rules:
        return f"rules: server {sorted(server.rules)}, pydantic {sorted(ours.rules)}"
    return None


def _without_empty(value: Any) -> Any:
    """An absent map or list is an empty one."""
    if isinstance(value, dict):
        return {k: inner for k, v in value.items() if (inner := _without_empty(v)) not in ({}, [])}
    return [_without_empty(v) for v in value] if isinstance(value, list) else value


def _paths(bounds: frozenset[str]) -> set[str]:
    return {bound.split(" ", 1)[0] for bound in bounds}


def _dotted(path: str | tuple[str | int, ...]) -> str:
    """`spec.a.0` for pydantic's tuples and for the API server's `spec.a[0]`."""
    if isinstance(path, str):
        return re.sub(r"\[([^]]+)\]", r".\1", path)
    return ".".join(str(step) for step in path)


def _miscounted(place: str, error: Any, places: list[str]) -> bool:
    """Pydantic counts only the good items of a list, so a list with a bad item may also be "too short"."""
    return error["type"] == "too_short" and any(other.startswith(f"{place}.") for other in places)


def _pydantic_bound(error: Any) -> str:
    kind = error["type"]
    if kind in PYDANTIC_BOUNDS:
        return PYDANTIC_BOUNDS[kind].format(**error.get("ctx", {}))
    return "type"


def _server_bound(message: str) -> str | None:
    """The bound that a schema error names; None for the sentence of a rule."""
    if message.startswith("Required value"):
        return "required"
    if message.startswith("Unsupported value"):
        return "one of"
    if "must be of type" in message or "must validate one and only one" in message or "in body must be" in message:
        return "type"
    for words, bound in BOUND_WORDS:
        if found := re.search(words, message):
            text = found.group(1).rstrip(".")
            return bound.format(f"{float(text):g}" if bound[-2:] == "{}" else text)
    return None


def _sentence(message: str) -> str:
    """`Invalid value: <value>: <sentence>` without the value, whatever colons and quotes it holds."""
    if not message.startswith("Invalid value: "):
        return message
    rest = message.removeprefix("Invalid value: ")
    if rest.startswith('"'):
        end = re.match(r'"(?:[^"\\]|\\.)*": ', rest)
        assert end is not None, message
        return rest[end.end() :]
    return rest.split(": ", 1)[1]
