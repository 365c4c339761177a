"""The API server's own schemas as files for kubeconform: what it publishes of every kind, ours among them.

Published catalogues of schemas are of some version and know nothing of our kinds; the server's OpenAPI is what it does.
"""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

from apiserver import BINARIES, Api

LOCATION = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
Schema = dict[str, Any]


def export(api: Api, folder: Path) -> int:
    """Write a file for each kind; returns how many."""
    written = set()
    for path in sorted(api.get("/openapi/v3").must()["paths"]):
        if not path.startswith(("api/", "apis/")):
            continue
        document = api.get(f"/openapi/v3/{path}").must()
        schemas: dict[str, Schema] = document.get("components", {}).get("schemas", {})
        strict = {name: _strict(schema) for name, schema in schemas.items()}
        for name, schema in schemas.items():
            for kind in schema.get("x-kubernetes-group-version-kind", ()):
                suffix = "-".join(part for part in (kind["group"].split(".", 1)[0], kind["version"]) if part)
                file = folder / f"{kind['kind'].lower()}-{suffix}.json"
                whole = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": strict}}
                if path.endswith(f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]):
                    file.write_text(json.dumps(whole))
                    written.add(file)
    return len(written)


def conform(folder: Path, manifests: str, *skipped: str) -> dict[str, Any]:
    """What kubeconform says of YAML documents by the schemas of `folder` alone; an unknown field is an error."""
    flags = ["-strict", "-summary", "-output", "json", "-skip", ",".join(skipped)]
    done = subprocess.run(
        [str(BINARIES / "kubeconform"), *flags, "-schema-location", f"{folder}/{LOCATION}", "-"],
        input=manifests,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def _strict(schema: Schema) -> Schema:
    """The schema, with fields that it does not name refused, as `fieldValidation=Strict` does."""
    made = copy.deepcopy(schema)
    _close(made)
    return made


def _close(node: Any) -> None:
    if isinstance(node, list):
        for each in node:
            _close(each)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("properties"), dict):
        if "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node["additionalProperties"] = False
        for child in node["properties"].values():
            _close(child)
    for key in ("items", "additionalProperties", "allOf", "oneOf", "anyOf"):
        _close(node.get(key))
