"""What a training pod asks for."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Integer, IntOrString, cel_string

MAX_NODES, MAX_GPUS_PER_NODE = 64, 16
CPU_PATTERN = r"^([0-9]{1,6}(\.[0-9]{1,3})?|[0-9]{1,9}m)$"
MEMORY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|k|M|G|T)?$"


def _quantity(pattern: str, what: str, example: str) -> IntOrString:
    compiled = re.compile(pattern)
    return IntOrString(
        message=f"{what} must be a quantity above 0 such as {example}",
        cel=f"type(self) == int ? self >= 1 : self.matches({cel_string(pattern)}) && self.matches('[1-9]')",
        holds=lambda value: (
            value >= 1
            if isinstance(value, int)
            else compiled.fullmatch(value) is not None and re.search("[1-9]", value) is not None
        ),
    )


Cpu = Annotated[int | str, _quantity(CPU_PATTERN, "cpu", '"8" or 500m')]
Memory = Annotated[int | str, _quantity(MEMORY_PATTERN, "memory", "64Gi")]
GpuMemory = Annotated[int | str, _quantity(MEMORY_PATTERN, "gpuMemory", "141Gi")]


class Resources(ApiModel):
    """What a training pod asks for, within the runtime's limits. Absent values are the runtime's defaults."""

    nodes: Annotated[Integer, Field(ge=1, le=MAX_NODES)] | None = None
    """Training pods that work as one, within the runtime's limits.maxNodes. Every claim that they mount must be
    ReadWriteMany (or ReadOnlyMany where it is only read). Absent = 1."""
    gpus_per_node: Annotated[Integer, Field(ge=0, le=MAX_GPUS_PER_NODE)] | None = None
    """GPUs of each pod, which all train as one; 0 = train on the CPU."""
    cpu: Cpu | None = None
    """CPU request of each pod; there is no CPU limit. What is computed on the CPU takes that many threads, rounded
    up."""
    memory: Memory | None = None
    """Memory of each pod: request and limit."""
