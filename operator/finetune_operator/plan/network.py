"""What stands beside a job's Jobs, made before them: the Service that gives its pods names, and who may reach them.

A NetworkPolicy is only an object: it is the cluster's network that enforces it, or not.
"""

from __future__ import annotations

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.runtime import RuntimeSpec
from finetune_api.trainer import Stage
from finetune_operator.plan import torchrun
from finetune_operator.plan.objects import labels_of, nodes_of, owner_reference
from finetune_operator.plan.state import Manifest
from finetune_operator.settings import NetworkPolicySettings, Settings

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
DNS_PORTS = (53, 5353)
"""A rule is held against the port behind the Service of cluster DNS; some distributions serve at 5353."""
NODE_LOCAL_DNS = "169.254.20.10/32"


def beside(job: FineTuneJob, stage: Stage, runtime: RuntimeSpec, settings: Settings) -> tuple[Manifest, ...]:
    """The Service and the NetworkPolicy that the pods of `stage` need, in the order in which they are made."""
    policy = [network_policy(job, settings.network_policy)] if settings.network_policy.enabled else []
    service = [train_service(job)] if nodes_of(job, stage, runtime) > 1 else []
    return (*policy, *service)


def train_service(job: FineTuneJob) -> Manifest:
    """A headless Service: `<pod>.<service>` is the address of a training pod, ready or not, before the first is."""
    selector = {**_pods_of(job), names.STAGE_LABEL: labels_of(job, Stage.TRAIN)[names.STAGE_LABEL]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, torchrun.subdomain(job)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector,
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }


def network_policy(job: FineTuneJob, settings: NetworkPolicySettings) -> Manifest:
    """Into the job's pods: the operator and scrapers at the port of progress, and each other. Out of them: anything, or
    what the settings list, cluster DNS and each other."""
    own = {"podSelector": {"matchLabels": _pods_of(job)}}
    spec: Manifest = {
        **own,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [own]}, *_progress(settings)],
    }
    if settings.egress is not None:
        spec["policyTypes"] = ["Ingress", "Egress"]
        spec["egress"] = [{"to": [own]}, _dns(), *settings.egress]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job, job.metadata.name),
        "spec": spec,
    }


def _pods_of(job: FineTuneJob) -> dict[str, str]:
    """What all pods of the job bear, and pods that the operator did not make must not."""
    return {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.JOB_UID_LABEL: job.metadata.uid or ""}


def _progress(settings: NetworkPolicySettings) -> list[Manifest]:
    """Who may ask a pod how far it is."""
    operator = settings.operator
    peers: list[Manifest] = []
    if operator is not None:
        where = {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: operator.namespace}}}
        peers.append({**where, "podSelector": {"matchLabels": operator.labels}})
    if settings.scrape_namespaces:
        among = {"key": NAMESPACE_LABEL, "operator": "In", "values": list(settings.scrape_namespaces)}
        peers.append({"namespaceSelector": {"matchExpressions": [among]}})
    return [{"from": peers, "ports": [{"protocol": "TCP", "port": names.PROGRESS_PORT}]}] if peers else []


def _dns() -> Manifest:
    ports = [{"protocol": protocol, "port": port} for port in DNS_PORTS for protocol in ("UDP", "TCP")]
    return {"to": [{"namespaceSelector": {}}, {"ipBlock": {"cidr": NODE_LOCAL_DNS}}], "ports": ports}


def _metadata(job: FineTuneJob, name: str) -> Manifest:
    labels = {key: value for key, value in labels_of(job, Stage.TRAIN).items() if key != names.STAGE_LABEL}
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(job)],
    }
