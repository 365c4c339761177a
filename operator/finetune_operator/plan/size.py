"""What a training pod asks for and where its result goes: the job's word, else the runtime's, else a small default."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job import FineTuneJob
from finetune_api.resources import Resources
from finetune_api.runtime import RuntimeSpec

DEFAULT_CPU, DEFAULT_MEMORY = "1", "2Gi"


@dataclass(frozen=True, slots=True)
class Size:
    """A training pod's size: CPU request, memory request and limit, GPUs."""

    nodes: int
    cpu: int | str
    memory: int | str
    gpus: int


def size_of(job: FineTuneJob, runtime: RuntimeSpec) -> Size:
    """The size of the training pod of `job` on `runtime`."""
    given, usual = job.spec.resources or Resources(), runtime.defaults.resources
    return Size(
        nodes=_first(given.nodes, usual.nodes, 1),
        cpu=_quantity(given.cpu, usual.cpu, DEFAULT_CPU),
        memory=_quantity(given.memory, usual.memory, DEFAULT_MEMORY),
        gpus=_first(given.gpus_per_node, usual.gpus_per_node, 0),
    )


def output_uri(job: FineTuneJob, runtime: RuntimeSpec) -> str | None:
    """The folder that holds the outputs of jobs; None where neither job nor runtime names one."""
    if job.spec.output and job.spec.output.uri:
        return str(job.spec.output.uri)
    template = runtime.defaults.output.uri
    if template is None:
        return None
    return str(template).replace("{namespace}", job.metadata.namespace or "").replace("{name}", job.metadata.name)


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _quantity(*values: int | str | None) -> int | str:
    return next(value for value in values if value is not None)
