"""Claims: whether all pods of a job can mount them, and the one for its output that a runtime's template makes.

A claim holds what jobs leave, so it outlives them: it has no owner, and is never deleted by the operator.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import Reason
from finetune_api.uris import parse_uri
from finetune_operator.plan.access import Use
from finetune_operator.plan.size import output_uri, size_of
from finetune_operator.plan.state import Manifest, Refusal
from finetune_operator.settings import Settings

SHARED = {True: ("ReadWriteMany",), False: ("ReadWriteMany", "ReadOnlyMany")}
"""Access modes with which pods on several nodes can mount a claim, by whether they write."""


def claim_template(job: FineTuneJob, runtime: RuntimeSpec, settings: Settings) -> Manifest | None:
    """The claim that is made for the output of `job` where it is missing; None = nobody makes one."""
    template, target = runtime.claim_template, output_uri(job, runtime)
    if template is None or not settings.create_claims or target is None or parse_uri(target).scheme != "pvc":
        return None
    own = {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.JOB_NAME_LABEL: job.metadata.name}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": parse_uri(target).root,
            "namespace": job.metadata.namespace,
            "labels": {**template.labels, **own},
            **({"annotations": template.annotations} if template.annotations else {}),
        },
        "spec": template.spec,
    }


def is_made(use: Use, uses: Iterable[Use], made: Manifest | None) -> bool:
    """Whether the missing claim of `use` is made by the template: only one from which nothing is to be read."""
    if made is None or made["metadata"]["name"] != use.parts.root:
        return False
    return all(other.write for other in uses if other.parts.volume == use.parts.volume)


def cannot_share(use: Use, modes: Iterable[str], job: FineTuneJob, runtime: RuntimeSpec) -> Refusal | None:
    """The refusal of a claim that pods on several nodes cannot all mount."""
    nodes, given = size_of(job, runtime).nodes, tuple(modes)
    if nodes == 1 or set(SHARED[use.write]) & set(given):
        return None
    wanted = " or ".join(SHARED[use.write])
    return Refusal(
        Reason.ACCESS_MODE,
        f"{use.field} is {use.uri}, which {nodes} pods mount, but claim {use.parts.root} is"
        f" {', '.join(given) or 'without an access mode'}: use a claim that is {wanted}, or set resources.nodes to 1",
    )
