"""How the pods of one training find each other: the environment that plain `torchrun SCRIPT` reads.

Ranks are fixed: the pod of index 0 is node 0 and keeps the store. torchrun's elastic rendezvous would go on with the
pods that are left; here a lost pod ends all of them and the Job makes each anew, because a state is saved by all and
taken up by all. So what has to be robust is only the meeting: a pod that comes first waits for the others as long as
the slowest of them may take, and the address of index 0 is a name, which leads to its newest pod.

The backend is the script's to choose; torch's own default is gloo for CPUs and NCCL for GPUs.
"""

from __future__ import annotations

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_operator.plan.size import Size
from finetune_operator.plan.state import Manifest


def subdomain(job: FineTuneJob) -> str:
    """The Service under which the pods of a training have names."""
    return names.train_job_name(job.metadata.name)


def environment(job: FineTuneJob, size: Size) -> list[Manifest]:
    """torchrun's arguments as variables, for every pod the same but for its index; none for a single pod."""
    if size.nodes == 1:
        return []
    first = f"{names.train_job_name(job.metadata.name)}-0.{subdomain(job)}"
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{names.INDEX_ANNOTATION}']"}}
    values = {
        "PET_NNODES": str(size.nodes),
        "PET_NPROC_PER_NODE": str(max(1, size.gpus)),
        "PET_MASTER_ADDR": first,
        "PET_MASTER_PORT": str(names.RENDEZVOUS_PORT),
        "PET_RDZV_CONF": f"timeout={names.MEETING_SECONDS}",
    }
    return [*({"name": k, "value": v} for k, v in values.items()), {"name": "PET_NODE_RANK", "valueFrom": index}]
