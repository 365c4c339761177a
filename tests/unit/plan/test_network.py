"""Who may reach a job's pods, how they find each other, and what becomes of a name that somebody else has."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders import JOB_UID, NAMESPACE, NOW, before_start, make_child, make_job, make_pod, make_runtime
from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.status import ConditionType
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide
from finetune_operator.plan.network import network_policy, train_service
from finetune_operator.plan.state import Beside, Observed, Owner, Plan
from finetune_operator.settings import NetworkPolicySettings, OperatorPods, Settings
from lives import after, message, said, seen

LATER = NOW + timedelta(seconds=30)
OPERATOR = OperatorPods(namespace="finetune-system", labels={"app.kubernetes.io/name": "finetune-operator"})
SETTINGS = Settings(network_policy=NetworkPolicySettings(enabled=True, operator=OPERATOR))
PODS = {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.JOB_UID_LABEL: JOB_UID}
OWN = {"podSelector": {"matchLabels": PODS}}
FROM_OPERATOR = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "finetune-system"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "finetune-operator"}},
}
PROGRESS = [{"protocol": "TCP", "port": 8080}]
OURS = Owner("FineTuneJob", "tune", JOB_UID)
POLICY = Beside("NetworkPolicy", "tune", OURS)
SERVICE = Beside("Service", "tune-train", OURS)


def policy(**settings: Any) -> dict[str, Any]:
    """The spec of the job's NetworkPolicy."""
    return dict(network_policy(make_job(), NetworkPolicySettings(enabled=True, **settings))["spec"])


def look(job: FineTuneJob, observed: Observed, settings: Settings = SETTINGS) -> Plan:
    return decide(job, observed, settings, LATER)


def started(stage: Stage, nodes: int = 2) -> FineTuneJob:
    """A job on several nodes after its first look; for TRAIN, with its data ready."""
    job = make_job(resources={"nodes": nodes})
    plan = decide(job, before_start(make_runtime(limits={"maxNodes": 4})), SETTINGS, NOW)
    job = job.model_copy(update={"status": plan.status})
    if stage is Stage.PREPARE:
        return job
    prepared = make_child(job, Stage.PREPARE, complete=True)
    return job.model_copy(update={"status": look(job, seen(Stage.PREPARE, prepared)).status})


def made(plan: Plan) -> list[tuple[str, str]]:
    return [(m["kind"], m["metadata"]["name"]) for m in plan.create]


def test_the_operator_and_the_jobs_own_pods_reach_them_and_nobody_else():
    spec = policy(operator=OPERATOR)
    assert spec["podSelector"] == OWN["podSelector"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"from": [OWN]}, {"from": [FROM_OPERATOR], "ports": PROGRESS}]
    assert "egress" not in spec


def test_scrapers_reach_the_port_of_progress_alone():
    spec = policy(scrape_namespaces=("monitoring",))
    among = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["monitoring"]}
    peer = {"namespaceSelector": {"matchExpressions": [among]}}
    assert spec["ingress"] == [{"from": [OWN]}, {"from": [peer], "ports": PROGRESS}]


def test_without_a_word_on_the_operator_no_rule_lets_everybody_in():
    """A rule with an empty `from` would."""
    assert policy()["ingress"] == [{"from": [OWN]}]


@pytest.mark.parametrize("given", [(), ({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},)])
def test_egress_is_what_the_settings_list_with_dns_and_each_other(given):
    spec = policy(egress=given)
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    own, dns, *rest = spec["egress"]
    assert own == {"to": [OWN]}
    assert {(p["protocol"], p["port"]) for p in dns["ports"]} >= {("UDP", 53), ("TCP", 53)}
    assert all(dns["to"])
    assert rest == list(given)


def test_the_service_names_the_training_pods_before_they_are_ready():
    service = train_service(make_job())
    assert service["metadata"]["name"] == "tune-train"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {**PODS, names.STAGE_LABEL: "train"}


@pytest.mark.parametrize("manifest", [network_policy(make_job(), SETTINGS.network_policy), train_service(make_job())])
def test_they_go_with_the_job(manifest):
    metadata = manifest["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("FineTuneJob", JOB_UID, True)
    assert metadata["namespace"] == NAMESPACE
    assert metadata["labels"][names.MANAGED_BY_LABEL] == names.MANAGED_BY


def test_they_are_made_before_the_pods_that_need_them():
    assert made(look(started(Stage.PREPARE), seen(Stage.PREPARE))) == [
        ("NetworkPolicy", "tune"),
        ("Job", "tune-prepare"),
    ]
    there = replace(seen(Stage.TRAIN), beside=(POLICY,))
    assert made(look(started(Stage.TRAIN), there)) == [("Service", "tune-train"), ("Job", "tune-train")]
    assert made(look(started(Stage.TRAIN, nodes=1), there)) == [("Job", "tune-train")]


def test_without_the_setting_there_is_no_policy():
    assert made(look(started(Stage.PREPARE), seen(Stage.PREPARE), Settings())) == [("Job", "tune-prepare")]


def test_one_that_vanishes_while_the_job_runs_is_made_again():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    running = seen(Stage.TRAIN, child, make_pod(child, "0-aaaaa", index=0), make_pod(child, "1-aaaaa", index=1))
    assert made(look(job, replace(running, beside=(POLICY,)))) == [("Service", "tune-train")]
    assert made(look(job, replace(running, beside=(SERVICE,)))) == [("NetworkPolicy", "tune")]
    whole = look(job, replace(running, beside=(POLICY, SERVICE)))
    assert (made(whole), whole.look_again_after) == ([], None)
    assert said(whole)["Running"] == ("True", "Running")


@pytest.mark.parametrize("foreign", [replace(POLICY, owner=None), replace(SERVICE, owner=Owner("App", "web", "x"))])
def test_anothers_is_never_used_and_no_pod_is_made_without_ours(foreign):
    plan = look(started(Stage.TRAIN), replace(seen(Stage.TRAIN), beside=(foreign,)))
    assert (made(plan), plan.look_again_after) == ([], SETTINGS.poll_period_seconds)
    assert said(plan)["Accepted"] == ("False", "NameConflict")
    assert f"{foreign.kind} {foreign.name} exists and" in message(plan, ConditionType.ACCEPTED)
    assert f"delete that {foreign.kind}, or create" in message(plan, ConditionType.ACCEPTED)


def test_what_is_left_of_a_job_of_the_same_name_is_waited_for():
    left = replace(POLICY, owner=Owner("FineTuneJob", "tune", "uid of the one before"))
    plan = look(started(Stage.PREPARE), replace(seen(Stage.PREPARE), beside=(left,)))
    assert (made(plan), plan.look_again_after) == ([], 1.0)
    assert "waits until an earlier NetworkPolicy tune is gone" in message(plan, ConditionType.DATA_READY)


def test_a_name_that_is_taken_while_the_job_runs_is_said_and_the_pods_go_on():
    job = started(Stage.TRAIN, nodes=1)
    child = make_child(job, Stage.TRAIN)
    foreign = replace(POLICY, owner=None)
    plan = look(job, replace(seen(Stage.TRAIN, child, make_pod(child)), beside=(foreign,)))
    assert (made(plan), plan.suspend) == ([], ())
    assert (said(plan)["Accepted"], said(plan)["Running"]) == (("False", "NameConflict"), ("True", "Running"))
    over = look(after(job, plan), seen(Stage.TRAIN, replace(child, complete=True)))
    assert (said(over)["Accepted"], said(over)["Complete"]) == (("True", "Accepted"), ("True", "NoFinalReport"))
