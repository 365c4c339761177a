"""How the operator runs: what its chart or its command line sets, and nothing that a user's job could."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from finetune_api.base import ApiModel, Flag, Integer, Name, Number
from finetune_api.runtime import OpaqueList, StringMap

PERIODS_OF_SILENCE = 6
Namespace = Annotated[str, Field(max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""The name of one namespace; no pattern, for which the operator would have to list all."""


class LeaderElection(ApiModel):
    """The Lease that one of several operators holds while it works."""

    namespace: Name
    """Where it lies: the operator's own namespace."""
    name: Name
    """Its name."""
    lease_duration_seconds: Annotated[Number, Field(ge=1, le=600)] = 15.0
    """How long the others wait for a holder that says nothing."""
    renew_deadline_seconds: Annotated[Number, Field(ge=0.5, le=600)] = 10.0
    """How long a holder that cannot renew it goes on; less than the duration."""
    retry_period_seconds: Annotated[Number, Field(ge=0.1, le=60)] = 2.0
    """How often it is renewed, or asked for; less than the deadline."""

    @model_validator(mode="after")
    def _ends_before_another_begins(self) -> LeaderElection:
        if not self.lease_duration_seconds > self.renew_deadline_seconds > self.retry_period_seconds:
            raise ValueError(
                "leaseDurationSeconds must be above renewDeadlineSeconds, which must be above retryPeriodSeconds"
            )
        return self


class OperatorPods(ApiModel):
    """How the operator's own pods are found."""

    namespace: Name
    """Their namespace."""
    labels: StringMap
    """Labels that they bear."""


class NetworkPolicySettings(ApiModel):
    """The NetworkPolicy that each job gets."""

    enabled: Flag = False
    """Whether each job gets a NetworkPolicy. The chart then grants the right to make them."""
    operator: OperatorPods | None = None
    """Who may ask the pods for progress. Absent = the operator runs outside the cluster, and no rule can name it."""
    scrape_namespaces: Annotated[tuple[Namespace, ...], Field(max_length=64)] = ()
    """Namespaces whose pods may ask at the port of progress too: where metrics are gathered."""
    egress: OpaqueList | None = None
    """NetworkPolicyEgressRules: where the pods may connect to, beside cluster DNS and each other. Absent = anywhere."""


class Settings(ApiModel):
    """All settings, each with the value that suits most clusters."""

    namespaces: Annotated[tuple[Namespace, ...], Field(max_length=256)] = ()
    """Namespaces to watch. Empty = the whole cluster. The chart then grants rights in these alone."""
    trainer_image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the default runtime. Absent = the chart's trainerImage, else finetune-trainer of this version."""
    create_default_runtime: Flag = True
    """Whether a FineTuneRuntime is created at start when there is none. The chart turns it off with namespaces, because
    runtimes belong to the whole cluster."""
    poll_period_seconds: Annotated[Number, Field(ge=0.05, le=600)] = 10.0
    """How often a running pod is asked for its progress, and a missing reference is looked for."""
    poll_timeout_seconds: Annotated[Number, Field(ge=0.05, le=60)] = 3.0
    """How long a pod may take to answer."""
    concurrent_polls: Annotated[Integer, Field(ge=1, le=1000)] = 64
    """Pods that are asked at the same time; those that gave no answer last time have as many places of their own."""
    progress_stale_seconds: Annotated[Number, Field(ge=0.1, le=86400)] = 300.0
    """How long a running pod may give no report before ProgressStale says so; never less than six poll periods."""
    resync_period_seconds: Annotated[Number, Field(ge=0.5, le=3600)] = 60.0
    """How often all jobs are listed and compared with what the watch has told."""
    status_writes_per_second: Annotated[Number, Field(gt=0, le=1000)] = 10.0
    """Status writes of the whole operator that change only progress."""
    kueue: Flag = False
    """Whether jobs may wait in queues of Kueue: a FineTuneJob with the label kueue.x-k8s.io/queue-name. The chart then
    grants the right to list and patch Workloads."""
    workers: Annotated[Integer, Field(ge=1, le=256)] = 8
    """Jobs that are looked at the same time."""
    stuck_after_seconds: Annotated[Number, Field(ge=1, le=3600)] = 120.0
    """Age of a waiting job, or of a difference between list and watch, from which /healthz says unhealthy."""
    health_port: Annotated[Integer, Field(ge=0, le=65535)] = 8081
    """Port of /healthz and /metrics. Without the chart, 0 = any free one."""
    shutdown_seconds: Annotated[Number, Field(ge=0, le=600)] = 20.0
    """How long the looks under way may take to end on SIGTERM."""
    network_policy: NetworkPolicySettings = NetworkPolicySettings()
    """The NetworkPolicy that each job gets."""
    create_claims: Flag = False
    """Whether a missing claim for the output is made where the runtime has a claimTemplate. The chart then grants the
    right to create claims."""
    leader_election: LeaderElection | None = None
    """The lease to hold while working. Absent = this process is the only one."""

    @property
    def patience_seconds(self) -> float:
        """How long a running pod may give no report."""
        return max(self.progress_stale_seconds, PERIODS_OF_SILENCE * self.poll_period_seconds)
