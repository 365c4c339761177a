"""The reference pages of docs/reference: what `kubectl explain` says, as tables, from the same schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
BLOCK = "### `{path}`\n\n{text}\n\n| field | type | meaning |\n|---|---|---|\n{rows}\n"


def reference_page(crd: Schema) -> str:
    """The Markdown page of one kind.

    Args:
        crd: its CustomResourceDefinition, as `finetune_api.crd` makes it.
    """
    spec, (version,) = crd["spec"], crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    names = spec["names"]
    short = ", ".join(f"`{name}`" for name in names["shortNames"])
    parts = [
        f"# {names['kind']}\n",
        f"{schema['description']}\n",
        f"`apiVersion: {spec['group']}/{version['name']}`, {spec['scope'].lower()}, short name {short}.",
        "A field that is required stands in **bold**; `kubectl explain` shows the same.\n",
    ]
    for part in ("spec", "status"):
        if part in schema["properties"]:
            parts += [f"## {part}\n", *_blocks(part, schema["properties"][part])]
    return "\n".join([*parts, *_rules(schema)])


def _blocks(path: str, schema: Schema) -> Iterator[str]:
    """The table of an object, then those of the objects in it."""
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    rows = "\n".join(_row(name, field, name in required) for name, field in properties.items())
    yield BLOCK.format(path=path, text=_plain(schema.get("description", "")), rows=rows)
    for name, field in properties.items():
        inner, suffix = _element(field)
        if "properties" in inner:
            yield from _blocks(f"{path}.{name}{suffix}", {**inner, "description": field.get("description", "")})


def _row(name: str, field: Schema, required: bool) -> str:
    shown = f"**`{name}`**" if required else f"`{name}`"
    return f"| {shown} | {_type(field)} | {_plain(field.get('description', ''))} |"


def _type(field: Schema) -> str:
    """The type in a word or two; the values of an enumeration."""
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map of {_type(field['additionalProperties'])}"
    return str(field.get("format") or field.get("type", "object"))


def _element(field: Schema) -> tuple[Schema, str]:
    """What a list or a map holds, and how its path goes on."""
    if "items" in field:
        return field["items"], "[]"
    if isinstance(field.get("additionalProperties"), dict):
        return field["additionalProperties"], ".*"
    return field, ""


def _rules(schema: Schema) -> list[str]:
    """The rules across fields, each with the sentence that a manifest gets that breaks it."""
    sentences = list(dict.fromkeys(_messages(schema)))
    if not sentences:
        return []
    return (
        ["## Rules across fields\n", "`kubectl apply` refuses what breaks one, with this sentence:\n"]
        + [f"- {_plain(sentence)}" for sentence in sentences]
        + [""]
    )


def _messages(schema: Schema) -> Iterator[str]:
    """The sentences of objects; those of single fields stand beside the field."""
    if "properties" in schema:
        yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
        for field in schema["properties"].values():
            yield from _messages(_element(field)[0])


def _plain(text: str) -> str:
    """Text that a table takes as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
