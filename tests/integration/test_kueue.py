"""Jobs in a queue of the real Kueue, with quota for one: queued, admitted, preempted, suspended, cancelled, deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

import installed
from apiserver import ControlPlane, control_plane
from finetune_operator.rbac import Switch, permissions
from kubelet import Behaviour, Kubelet, wait_for
from kueue import PRIORITY_LABEL, QUEUE_LABEL, Queues, is_active, kueue
from manifests import ROOT, job, read
from world import OperatorProcess, World, progress, published, script

EXAMPLE_QUEUE = ROOT / "examples" / "kueue" / "queue.yaml"
SETTINGS = {"pollPeriodSeconds": 0.3, "resyncPeriodSeconds": 1, "healthPort": 0, "trainerImage": "t:1", "kueue": True}
INSUFFICIENT = "insufficient unused quota for cpu"


@dataclass
class QueueWorld(World):
    """A namespace with a queue that runs one job at a time."""

    queues: Queues
    queue: str = ""

    def submit(self, name: str, *train: Behaviour, labels: dict[str, str] | None = None, **spec: Any) -> None:
        """Create a job in the queue; its training pods behave as told, well by default."""
        self.kubelet.scripts[self.namespace, name] = script(name, train=list(train) or None)
        manifest = job(name, **spec)
        manifest["metadata"]["labels"] = {QUEUE_LABEL: self.queue, **(labels or {})}
        self.api.post(self.jobs, manifest).must()

    def change(self, name: str, **spec: Any) -> None:
        """Change a job's spec."""
        self.api.patch(f"{self.jobs}/{name}", {"spec": spec}).must()

    def another(self, priority: str) -> str:
        """Somebody else's batch Job in the queue, of the size of ours; its pod never ends. Returns its path."""
        requests = {"cpu": "1", "memory": "2Gi"}
        containers = [{"name": "main", "image": "x", "resources": {"requests": requests}}]
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        labels = {QUEUE_LABEL: self.queue, PRIORITY_LABEL: priority}
        spec = {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": containers}}}
        self.api.post(path, {"metadata": {"name": "another", "labels": labels}, "spec": spec}).must()
        return f"{path}/another"

    def workload(self, child: str) -> dict[str, Any]:
        """Kueue's object for a child Job; empty if there is none."""
        return self.queues.workload(self.namespace, child) or {}

    def running_pods(self, name: str) -> list[str]:
        """Names of the job's pods that have not ended."""
        every = [pod for stage in ("prepare", "train") for pod in self.pods(stage)]
        live = [pod for pod in every if pod["status"].get("phase") not in ("Succeeded", "Failed")]
        return [p["metadata"]["name"] for p in live if p["metadata"]["labels"]["finetune.dev/job-name"] == name]

    def wait_for_step(self, name: str, step: int) -> None:
        """Wait until a state of that step is saved."""
        wait_for(lambda: self.status(name).get("recovery", {}).get("step") == step, f"a state of step {step}", 60)


@pytest.fixture(scope="module")
def kueue_plane(tmp_path_factory) -> Iterator[tuple[ControlPlane, Queues]]:
    """A control plane of its own with Kueue, so that its webhooks judge no other test's Jobs."""
    with control_plane(tmp_path_factory.mktemp("kueue-plane")) as plane:
        installed.kinds(plane)
        with kueue(plane) as queues:
            queues.priority("urgent", 1000)
            yield plane, queues


@pytest.fixture(scope="module")
def kueue_operator(kueue_plane, tmp_path_factory) -> Iterator[OperatorProcess]:
    """The operator with the switch on, in its settings and in its role."""
    folder = tmp_path_factory.mktemp("kueue-operator")
    account = installed.operator_account(kueue_plane[0], folder, "--set", "settings.kueue=true")
    (folder / "settings.yaml").write_text(json.dumps(SETTINGS))
    running = OperatorProcess(account, folder / "settings.yaml", folder / "operator.log")
    running.start()
    try:
        running.wait_for_log("made FineTuneRuntime default")
        yield running
    finally:
        code = running.stop()
    assert code == 0


@pytest.fixture(scope="module")
def kueue_kubelet(kueue_plane) -> Iterator[Kubelet]:
    """Runs the pods."""
    with Kubelet(kueue_plane[0].api()) as running:
        yield running


@pytest.fixture
def line(kueue_plane, kueue_operator, kueue_kubelet) -> Iterator[QueueWorld]:
    """A namespace with quota for one job."""
    plane, queues = kueue_plane
    api = plane.api()
    namespace = api.post("/api/v1/namespaces", {"metadata": {"generateName": "test-"}}).must()["metadata"]["name"]
    made = QueueWorld(plane, api, kueue_kubelet, kueue_operator, namespace, queues)
    made.prepare()
    made.queue = queues.one_at_a_time(namespace)
    yield made
    api.delete(f"/api/v1/namespaces/{namespace}")
    api.close()


def hold(until: threading.Event | None = None) -> Behaviour:
    """A pod that saves a state of step 2 and goes on until it is told, or deleted."""
    return Behaviour((progress(1), progress(2)), seconds=0.2, until=until or threading.Event(), word={})


def resumed(name: str) -> Behaviour:
    """A pod that goes on from step 2 and ends well."""
    return Behaviour(({**progress(3), "resumed_from_step": 2},), word=published(name))


def seconds_between(begin: str, end: str) -> float:
    """From one time of a status to another."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_the_second_job_waits_until_the_first_has_ended(line) -> None:
    go = threading.Event()
    held = Behaviour((progress(2),), until=go, word=published("first"))
    line.submit("first", held, labels={"kueue.x-k8s.io/pod-group-name": "x", "team": "a"})
    line.wait("first", "Running")
    line.submit("second")
    told = line.wait("second", "DataReady", "False", "Queued")
    wait_for(lambda: INSUFFICIENT in line.condition("second", "DataReady")["message"], "Kueue's own sentence")
    assert f"in queue {line.queue}: " in line.condition("second", "DataReady")["message"], told
    assert line.status("second")["phase"] == "Queued"
    assert line.children("second")["second-prepare"]["spec"]["suspend"] is True
    assert not line.running_pods("second")
    go.set()
    line.wait("first", "Complete", seconds=60)
    line.wait("second", "Complete", seconds=60)
    for name in ("first", "second"):
        for child in line.children(name).values():
            bears = {key: v for key, v in child["metadata"]["labels"].items() if "kueue" in key or key == "team"}
            assert bears == {QUEUE_LABEL: line.queue}
            assert not any("kueue" in key for key in child["spec"]["template"]["metadata"]["labels"])


def test_a_preempted_job_costs_no_retry_and_goes_on_from_its_state(line) -> None:
    line.submit("patient", hold(), resumed("patient"), backoffLimit=0)
    line.wait_for_step("patient", 2)
    urgent = line.another("urgent")
    line.wait("patient", "Running", "False", "Queued", seconds=60)
    wait_for(lambda: INSUFFICIENT in line.condition("patient", "Running")["message"], "Kueue's own sentence")
    status = line.status("patient")
    assert (status["phase"], status["restarts"], status["disruptions"]) == ("Queued", 0, 1)
    assert status["attempts"][-1]["reason"] == "Preempted"
    assert not line.running_pods("patient")
    assert "active" in line.api.get(urgent).must()["status"]
    line.api.delete(urgent).must()
    line.wait("patient", "Complete", seconds=60)
    status = line.status("patient")
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    assert status["attempts"][-1]["resumedFromStep"] == 2


def test_a_suspended_job_gives_its_quota_away_and_goes_on_when_it_is_free(line) -> None:
    line.submit("first", hold(), resumed("first"))
    line.wait_for_step("first", 2)
    line.submit("second")
    line.wait("second", "DataReady", "False", "Queued")
    line.change("first", suspend=True)
    told = line.wait("first", "Suspended", reason="UserRequested", seconds=60)
    assert "step 2" in told["message"]
    assert line.status("first")["phase"] == "Suspended"
    assert not line.running_pods("first")
    assert line.workload("first-train")["spec"]["active"] is False
    line.wait("second", "Complete", seconds=60)
    assert line.condition("first", "Suspended")["status"] == "True", "and stays so while there is quota"
    line.change("first", suspend=False)
    line.wait("first", "Complete", seconds=60)
    status = line.status("first")
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert status["attempts"][-1]["resumedFromStep"] == 2


def test_suspended_and_let_go_while_it_waits(line) -> None:
    go = threading.Event()
    line.submit("first", Behaviour((progress(2),), until=go, word=published("first")))
    line.wait("first", "Running")
    line.submit("second")
    line.wait("second", "DataReady", "False", "Queued")
    line.change("second", suspend=True)
    line.wait("second", "Suspended", reason="UserRequested")
    go.set()
    line.wait("first", "Complete", seconds=60)
    assert not line.running_pods("second")
    line.change("second", suspend=False)
    line.wait("second", "Complete", seconds=60)


@pytest.mark.parametrize("moment", ["queued", "running"])
def test_a_cancelled_job_leaves_the_queue_to_the_next(line, moment) -> None:
    line.submit("first", hold())
    line.wait_for_step("first", 2)
    line.submit("second")
    line.wait("second", "DataReady", "False", "Queued")
    name, child = ("second", "second-prepare") if moment == "queued" else ("first", "first-train")
    line.change(name, cancel=True)
    failed = line.wait(name, "Failed", reason="Cancelled", seconds=60)
    assert ("2" in failed["message"]) is (moment == "running"), "the step of the saved state, if there is one"
    assert line.status(name)["phase"] == "Cancelled"
    assert line.workload(child)["spec"]["active"] is False
    assert not line.running_pods(name)
    if moment == "running":
        line.wait("second", "Complete", seconds=60)


def test_the_deadline_counts_running_time_alone(line) -> None:
    line.submit("first", hold(), activeDeadlineSeconds=8)
    line.wait_for_step("first", 2)
    line.submit("second", activeDeadlineSeconds=3600)
    line.wait("second", "DataReady", "False", "Queued")
    line.wait("first", "Failed", reason="DeadlineExceeded", seconds=60)
    assert line.workload("first-train")["spec"]["active"] is False
    line.wait("second", "Complete", seconds=60)
    second, freed = line.status("second"), line.status("first")["attempts"][-1]["endTime"]
    waited = seconds_between(second["startTime"], freed)
    took = seconds_between(second["startTime"], second["completionTime"])
    assert waited > 3
    assert second["activeSeconds"] <= took - waited + 2, "all times are told in whole seconds"


def test_a_job_without_a_workload_says_so_and_can_be_cancelled_for_good(line) -> None:
    line.submit("typo", labels={PRIORITY_LABEL: "urgnet"})
    told = line.wait("typo", "DataReady", "False", "Queued")
    assert "Kueue has made no Workload" in told["message"]
    assert PRIORITY_LABEL in told["message"]
    line.change("typo", cancel=True)
    line.wait("typo", "Failed", reason="Cancelled")
    line.queues.priority("urgnet", 5)
    labels = line.children("typo")["typo-prepare"]["metadata"]["labels"]
    assert QUEUE_LABEL not in labels, "or Kueue would start it now"
    assert line.workload("typo-prepare") == {}


def test_a_job_taken_out_of_the_queue_returns_to_it(line) -> None:
    name = f"late-{line.namespace}"
    line.submit("early", labels={PRIORITY_LABEL: name})
    line.wait("early", "DataReady", "False", "Queued")
    line.change("early", suspend=True)
    line.wait("early", "Suspended")
    line.queues.priority(name, 5)
    assert not line.running_pods("early")
    line.change("early", suspend=False)
    line.wait("early", "Complete", seconds=60)
    assert line.children("early")["early-train"]["metadata"]["labels"][QUEUE_LABEL] == line.queue


def test_deleted_while_it_waits_it_leaves_nothing(line) -> None:
    line.submit("first", hold())
    line.wait("first", "Running")
    line.submit("second")
    line.wait("second", "DataReady", "False", "Queued")
    wait_for(lambda: line.workload("second-prepare"), "its Workload")
    line.plane.kubectl("delete", "ftj", "second", "-n", line.namespace)
    wait_for(lambda: not line.children("second") and not line.workload("second-prepare"), "Job and Workload to go")
    assert line.workload("first-train")["spec"]["active"] is True


def test_anothers_deactivated_workload_is_told_and_left_alone(line) -> None:
    line.submit("mine", hold(), resumed("mine"))
    line.wait_for_step("mine", 2)
    name = line.workload("mine-train")["metadata"]["name"]
    path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{line.namespace}/workloads/{name}"
    line.api.patch(path, {"spec": {"active": False}}).must()
    told = line.wait("mine", "Running", "False", "Queued", seconds=60)
    wait_for(lambda: "kubectl patch workload" in line.condition("mine", "Running")["message"], "what to do", 60)
    assert name in line.condition("mine", "Running")["message"], told
    line.api.patch(path, {"spec": {"active": True}}).must()
    line.wait("mine", "Complete", seconds=60)


def test_a_changed_label_reaches_the_jobs_that_are_made_after_it(line) -> None:
    line.queues.queue("other", line.namespace)
    go = threading.Event()
    first = Behaviour((), until=go)
    line.kubelet.scripts[line.namespace, "moved"] = lambda stage, n: script("moved", prepare=first)(stage, n)
    manifest = job("moved")
    manifest["metadata"]["labels"] = {QUEUE_LABEL: line.queue}
    line.api.post(line.jobs, manifest).must()
    line.wait("moved", "DataReady", "False", "Checking")
    line.api.patch(f"{line.jobs}/moved", {"metadata": {"labels": {QUEUE_LABEL: "other"}}}).must()
    go.set()
    line.wait("moved", "Complete", seconds=60)
    queues = {n: c["metadata"]["labels"][QUEUE_LABEL] for n, c in line.children("moved").items()}
    assert queues == {"moved-prepare": line.queue, "moved-train": "other"}


def test_the_example_is_a_queue_that_works_and_a_job_for_it(line) -> None:
    line.plane.kubectl("apply", "--filename", str(EXAMPLE_QUEUE))
    (example,) = read(ROOT / "examples" / "kueue-job.yaml")
    labels = example["metadata"]["labels"]
    queue = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/default/localqueues/{labels[QUEUE_LABEL]}"
    wait_for(lambda: is_active(line.api.get(queue).must()), "an active LocalQueue")
    line.plane.kubectl("get", "workloadpriorityclass", labels[PRIORITY_LABEL])
    line.plane.kubectl("delete", "--filename", str(EXAMPLE_QUEUE), "--wait=false")


def test_the_switch_grants_what_the_table_says(kueue_plane, kueue_operator) -> None:
    api = kueue_plane[0].api(json.loads(kueue_operator.kubeconfig.read_text())["users"][0]["user"]["token"])

    def may(verb: str, resource: str) -> bool:
        what = {"group": "kueue.x-k8s.io", "resource": resource, "verb": verb}
        review = {"spec": {"resourceAttributes": what}}
        return bool(
            api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).must()["status"]["allowed"]
        )

    verbs = {verb for verb in ("get", "list", "watch", "create", "update", "patch", "delete") if may(verb, "workloads")}
    (permission,) = permissions(Switch.KUEUE)
    assert verbs == set(permission.verbs)
    assert not any(may(verb, other) for verb in ("get", "patch") for other in ("localqueues", "clusterqueues"))
    api.close()
