"""What every model of the contract shares: camelCase, frozen, strict numbers, and rules that hold in CEL and in Python.

The API server and pydantic must give the same verdict on the same JSON. So this module fixes the three places where
their habits differ: numbers are never strings and integral floats are integers; a null is an absent field; a rule
across fields is written once, as a `Rule`, and ends both in the CRD and in the validator.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, PydanticKnownError


def _integral(value: object) -> object:
    """1.0 is an integer: so JSON Schema has it, and so kubectl writes it. What does not fit 64 bits is none."""
    if isinstance(value, float) and value.is_integer() and _fits(value):
        return int(value)
    if isinstance(value, int) and not _fits(value):
        return float(value) if abs(value) <= sys.float_info.max else math.inf if value > 0 else -math.inf
    return value


def _fits(value: float) -> bool:
    return -(2**63) <= value < 2**63


Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, StringConstraints(strict=True, max_length=253)]
Text = Annotated[str, StringConstraints(strict=True, max_length=4096)]
INT_OR_STRING_LENGTH = 63


def _moment(value: str) -> str:
    """The API server refuses any other text where the schema says date-time."""
    try:
        datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise PydanticCustomError("time", "Input should be a time like 2026-01-31T12:00:00Z") from None
    return value


Time = Annotated[
    str, StringConstraints(max_length=32), AfterValidator(_moment), Field(json_schema_extra={"format": "date-time"})
]
"""RFC 3339, UTC, whole seconds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition across fields that both judges apply: `cel` in the API server, `holds` in Python, one message."""

    message: str
    cel: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class TransitionRule:
    """A condition on a change: `cel` sees `oldSelf` and `self`, `holds` gets (old, new)."""

    message: str
    cel: str
    holds: Callable[[Any, Any], bool]


class ApiModel(BaseModel):
    """A frozen model with camelCase JSON, documented by the string under each field."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    transition_rules: ClassVar[tuple[TransitionRule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_as_the_api_server_does(cls, data: object) -> object:
        """A null is an absent field; 1.0 is an integer (a float field takes it back)."""
        if not isinstance(data, dict):
            return data
        return {key: _integral(value) for key, value in data.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        every: list[Rule | TransitionRule] = [*cls.rules, *cls.transition_rules]
        validations = [{"rule": rule.cel, "message": rule.message} for rule in every]
        if validations:
            schema["x-kubernetes-validations"] = validations
        return schema

    def to_json(self) -> dict[str, Any]:
        """The JSON form that a manifest or a message carries: absent values left out."""
        return self.model_dump(mode="json", exclude_none=True)


class Resource(ApiModel):
    """A whole Kubernetes object: the level at which all nested rules are judged together, as the API server does."""

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Resource:
        broken = [
            InitErrorDetails(
                type=PydanticCustomError("rule", "{message}", {"message": rule.message}), loc=path, input=None
            )
            for path, model in walk(self)
            for rule in model.rules
            if not rule.holds(model)
        ]
        if broken:
            raise ValidationError.from_exception_data(type(self).__name__, broken)
        return self


def walk(model: ApiModel, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], ApiModel]]:
    """Every model in the tree with its JSON path, the root first."""
    yield path, model
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        step = (*path, field.alias or name)
        if isinstance(value, ApiModel):
            yield from walk(value, step)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, ApiModel):
                    yield from walk(item, (*step, index))


def broken_transitions(old: ApiModel, new: ApiModel) -> list[str]:
    """The messages of the transition rules that the change from `old` to `new` breaks."""
    return [rule.message for rule in type(new).transition_rules if not rule.holds(old, new)]


@dataclass(frozen=True, slots=True)
class Matching:
    """Marks a string whose whole text must match `pattern`: a refusal shows the sentence, never the expression.

    With the validation context `local` (a run without Kubernetes) a string that begins with `local_prefix` is taken
    as it is. `never` is what the pattern lets through and may not: CEL's expressions cannot look ahead.
    """

    message: str
    pattern: str
    max_length: int
    local_prefix: str | None = None
    never: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        compiled, never = re.compile(self.pattern), re.compile(self.never) if self.never else None

        def check(value: str, info: core_schema.ValidationInfo) -> str:
            local = self.local_prefix is not None and bool(info.context and info.context.get("local"))
            fits = compiled.fullmatch(value) and not (never and never.fullmatch(value))
            if not fits and not (local and value.startswith(self.local_prefix or "")):
                raise PydanticCustomError("rule", "{message}", {"message": self.message})
            return value

        text = core_schema.str_schema(strict=True, max_length=self.max_length)
        return core_schema.with_info_after_validator_function(check, text)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        cel = f"self.matches({cel_string(self.pattern)})"
        if self.never is not None:
            cel += f" && !self.matches({cel_string(self.never)})"
        rule = {"rule": cel, "message": self.message}
        return {"type": "string", "maxLength": self.max_length, "x-kubernetes-validations": [rule]}


@dataclass(frozen=True, slots=True)
class Below:
    """Marks a number that must stay below a `limit` that is no whole number.

    A schema's own bound will not do: the API server cuts it down to a whole number where the value is one, so that
    `maximum: 0.5, exclusiveMaximum: true` refuses 0.
    """

    message: str
    limit: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        def check(value: float) -> float:
            if value >= self.limit:
                raise PydanticCustomError("rule", "{message}", {"message": self.message})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        rule = {"rule": f"self < {self.limit}", "message": self.message}
        return {**handler(schema), "x-kubernetes-validations": [rule]}


def cel_string(text: str) -> str:
    """`text` as a CEL literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@dataclass(frozen=True, slots=True)
class IntOrString:
    """Marks a field that Kubernetes calls int-or-string, with the CEL and Python form of what it may be."""

    message: str
    cel: str
    holds: Callable[[int | str], bool]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        def fits(value: int | str) -> bool:
            return isinstance(value, str) or -(2**63) <= value < 2**63

        def check(value: object) -> int | str:
            if isinstance(value, bool) or not isinstance(value, int | str) or not fits(value):
                raise PydanticCustomError("int_or_string", "{message}", {"message": self.message})
            if isinstance(value, str) and len(value) > INT_OR_STRING_LENGTH:
                raise PydanticKnownError("string_too_long", {"max_length": INT_OR_STRING_LENGTH})
            if not self.holds(value):
                raise PydanticCustomError("rule", "{message}", {"message": self.message})
            return value

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": INT_OR_STRING_LENGTH,
            "x-kubernetes-validations": [{"rule": self.cel, "message": self.message}],
        }
