"""Whole lives at random: whatever cluster and people do, and whenever it is looked, no status contradicts itself.

A little world moves by single steps in any order: a Job controller, kubelets that start and end pods, lost nodes,
a queue, people who suspend, cancel and delete, an operator that looks often, seldom, or forgets what it has heard.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from builders import NOW, before_start, failed_report, make_child, make_job, make_pod, make_recovery, report_for
from finetune_api import names
from finetune_api.failures import FailureCode
from finetune_api.job import FineTuneJob
from finetune_api.resources import Resources
from finetune_api.status import ConditionType, JobStatus, Phase, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide
from finetune_operator.plan.look import stage_of
from finetune_operator.plan.state import ChildJob, Heard, Observed, Plan, Pod, Waiting, Workload, timestamp
from finetune_operator.settings import Settings

SETTINGS = Settings(kueue=True)
ENDS: tuple[dict[str, Any], ...] = (
    {"exit_code": 0},
    {"exit_code": 0},
    {"exit_code": 1},
    {"exit_code": 3},
    {"exit_code": 3, "disrupted": "EvictionByEvictionAPI"},
    {"exit_code": 4},
    {"exit_code": 11},
    {"exit_code": 22},
    {"exit_code": 137, "cause": "OOMKilled"},
    {"exit_code": None, "disrupted": "DeletionByPodGC"},
)
STOPS = ("Cancelled", "DeadlineExceeded", "StartTimeout")
UNSCHEDULABLE = Waiting(Reason.UNSCHEDULABLE, "pod p: Unschedulable")
LOST = Waiting(Reason.NODE_LOST, "pod p: its node does not answer")


@dataclass
class Walk:
    """A job and what there is of it in the cluster."""

    job: FineTuneJob
    luck: random.Random
    nodes: int
    now: datetime = NOW
    child: ChildJob | None = None
    pods: list[Pod] = field(default_factory=list)
    failures: int = 0
    made: int = 0
    forgets: bool = False
    trace: list[str] = field(default_factory=list)

    @property
    def status(self) -> JobStatus:
        return self.job.status or JobStatus()

    @property
    def stage(self) -> Stage:
        return stage_of(self.status)

    def observed(self) -> Observed:
        if self.status.start_time is None:
            return before_start()
        reports = {} if self.forgets else {p.uid: self._said(p) for p in self.pods if p.running and p.leads}
        children = {self.stage: self.child} if self.child else {}
        return Observed(children=children, pods={self.stage: tuple(self.pods)}, reports=reports)

    def _said(self, pod: Pod) -> Heard:
        step = int((self.now - NOW).total_seconds()) // 60
        return Heard(report_for(pod, self.stage, recovery=make_recovery(step), resumed_from_step=0), self.text)

    @property
    def text(self) -> str:
        return timestamp(self.now)

    # --- what people do ---

    def suspend(self) -> None:
        self.ask(suspend=not self.job.spec.suspend)

    def cancel(self) -> None:
        if self.luck.random() < 0.15:
            self.ask(cancel=True)

    def delete_child(self) -> None:
        if self.luck.random() < 0.1:
            self.child = None

    def ask(self, **fields: Any) -> None:
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update=fields)})

    # --- what the cluster does ---

    def control(self) -> None:
        """The Job controller."""
        child = self.child
        own = [p for p in self.pods if child is not None and p.job_uid == child.uid]
        if child is None or child.finished:
            return
        alive = [p for p in own if p.ended is None]
        if child.suspended:
            for pod in alive:
                self._change(pod, running=False)
            self.child = replace(child, halted=not alive, started=None)
            return
        self.child = child = replace(child, halted=False, started=child.started or self.text)
        taken = {p.index or 0 for p in alive}
        for index in set(range(self.width)) - taken:
            self.made += 1
            more = {"index": index} if self.width > 1 else {}
            fields = {"created": self.text, "started": None, "waiting": UNSCHEDULABLE, **more}
            self.pods.append(make_pod(child, f"{self.made:05d}", **fields))

    @property
    def width(self) -> int:
        return self.nodes if self.stage is Stage.TRAIN else 1

    def start(self) -> None:
        for pod in self.pods:
            if pod.started is None and pod.ended is None and self.luck.random() < 0.7:
                self._change(pod, started=self.text, running=True, waiting=None)

    def lose_node(self) -> None:
        for pod in self._alive():
            self._change(pod, running=False, waiting=LOST)
            break

    def find_node(self) -> None:
        for pod in self._alive():
            if pod.waiting is LOST:
                self._change(pod, running=True, waiting=None)

    def finish(self) -> None:
        """What runs does well."""
        for _ in self._alive():
            self.end(ENDS[:1])

    def end(self, ends: tuple[dict[str, Any], ...] = ENDS) -> None:
        for pod in self._alive():
            held = self.child is not None and self.child.suspended
            how = dict(self.luck.choice(ENDS[3:6] if held and self.luck.random() < 0.8 else ends))
            self._change(pod, running=False, waiting=None, ended=self.text, last_word=self._word(pod, how), **how)
            self._count(pod, how)
            break

    def vanish(self) -> None:
        """A pod is gone, and nobody has seen its last event."""
        pods = [p for p in self.pods if p.ended is not None or self.luck.random() < 0.2]
        if pods:
            self.pods.remove(self.luck.choice(pods))

    def admit(self) -> None:
        """Kueue lets it start, or takes its place away."""
        if self.child is None or self.child.queue is None or self.child.finished:
            return
        workload = self.child.workload or Workload("w", "uid-of-w", said="waits")
        go = workload.active and self.luck.random() < 0.7
        self.child = replace(self.child, suspended=not go, workload=replace(workload, reserved=go))

    def _alive(self) -> list[Pod]:
        return [p for p in self.pods if p.started is not None and p.ended is None]

    def _change(self, pod: Pod, **fields: Any) -> None:
        self.pods[self.pods.index(pod)] = replace(pod, **fields)

    def _word(self, pod: Pod, how: dict[str, Any]) -> str:
        if not pod.leads or how.get("exit_code") is None or self.luck.random() < 0.2:
            return ""
        if how["exit_code"] == 0:
            return report_for(pod, self.stage, finished=True).model_dump_json()
        saved = self._said(pod).report.recovery
        word = failed_report(pod, self.stage, FailureCode.STOPPED).model_copy(update={"recovery": saved})
        return word.model_dump_json()

    def _count(self, pod: Pod, how: dict[str, Any]) -> None:
        child = self.child
        if child is None or pod.job_uid != child.uid or child.suspended or child.finished:
            return
        self.failures += how["exit_code"] in (1, 22, 137)
        if how["exit_code"] == 0 and pod.leads:
            self.child = replace(child, complete=True)
            self.pods = [replace(p, ended=p.ended or self.text, running=False, waiting=None) for p in self.pods]
        elif how["exit_code"] == 11 or self.failures >= (self.job.spec.backoff_limit + 1) * self.width:
            self.child = replace(child, failed=True)
            self.pods = [replace(p, ended=p.ended or self.text, running=False, waiting=None) for p in self.pods]

    # --- what the operator does ---

    def look(self) -> Plan:
        before, seen = self.job, self.observed()
        plan = decide(self.job, seen, SETTINGS, self.now)
        self.job = self.job.model_copy(update={"status": plan.status})
        judge(before.status or JobStatus(), plan, seen, self)
        again = decide(self.job, seen, SETTINGS, self.now)
        staged = self.stage is not stage_of(before.status or JobStatus())
        begun = before.status is None or before.status.start_time is None
        if not (staged or begun or again.create):
            assert settled(plan, again), ("looked twice", said(plan.status), said(again.status), self.trace)
        if staged:
            self.child, self.pods, self.failures = None, [], 0
        for manifest in plan.create:
            if manifest["kind"] == "Job":
                assert self.child is None, "made twice"
                fields = {"queue": "q", "suspended": True} if manifest["spec"].get("suspend") else {}
                self.made += 1
                self.failures = 0
                self.child = make_child(self.job, self.stage, uid=f"uid-{self.made}", **fields)
        for child in (*plan.suspend, *plan.resume):
            self.child = child
        return plan

    def forget(self) -> None:
        self.forgets = not self.forgets

    def wait(self) -> None:
        self.now += timedelta(seconds=self.luck.choice((1, 10, 60, 600)))


def said(status: JobStatus) -> dict[str, tuple[str, str, str]]:
    return {c.type: (c.status.value, c.reason, c.message) for c in status.conditions}


def settled(plan: Plan, again: Plan) -> bool:
    """The same look a second time tells nothing new."""
    return said(plan.status) == said(again.status) and plan.status.attempts == again.status.attempts


def judge(before: JobStatus, plan: Plan, seen: Observed, walk: Walk) -> None:
    """Whether a status may follow another, and be shown to anybody."""
    busy = any(p.ended is None for pods in seen.pods.values() for p in pods)
    told = (said(plan.status), walk.trace[-12:])
    if before.is_final:
        assert plan.status == before, told
        assert (plan.create, plan.suspend, plan.resume, plan.events) == ((), (), (), ()), told
        return
    judge_conditions(plan.status, walk.job.spec.suspend, busy, told)
    judge_counts(before, plan.status, walk.job.spec.backoff_limit, told)
    made = any(m["kind"] == "Job" for m in plan.create)
    assert not (made and (seen.children or busy or plan.status.is_final)), told
    assert not (plan.suspend and plan.resume), told


def judge_conditions(status: JobStatus, suspend: bool, busy: bool, told: object) -> None:
    is_true = status.is_true
    failed = status.condition(ConditionType.FAILED)
    assert not (is_true(ConditionType.COMPLETE) and is_true(ConditionType.FAILED)), told
    assert is_true(ConditionType.PUBLISHED) or not is_true(ConditionType.COMPLETE), told
    assert not (is_true(ConditionType.PUBLISHED) and is_true(ConditionType.FAILED)), told
    assert is_true(ConditionType.FAILED) == is_true(ConditionType.STALLED), told
    assert (status.completion_time is not None) == status.is_final, told
    assert not (status.is_final and status.active_since), told
    if is_true(ConditionType.RUNNING):
        assert is_true(ConditionType.DATA_READY), told
        assert busy, told
        assert not status.is_final, told
        assert not is_true(ConditionType.SUSPENDED), told
        assert status.phase in (Phase.RUNNING, Phase.PUBLISHING), told
    if is_true(ConditionType.SUSPENDED):
        assert suspend, told
        assert not busy, told
        assert status.active_since is None, told
        assert status.phase is Phase.SUSPENDED, told
    if failed is not None and failed.reason in STOPS:
        assert not busy, told


def judge_counts(before: JobStatus, status: JobStatus, backoff_limit: int, told: object) -> None:
    assert status.disruptions >= before.disruptions, told
    assert status.restarts >= before.restarts or status.is_final, told
    assert status.restarts <= backoff_limit + 1, told
    assert status.active_seconds >= before.active_seconds, told
    assert len({a.pod for a in status.attempts}) == len(status.attempts), told
    assert (status.recovery.step if status.recovery else 0) >= (before.recovery.step if before.recovery else 0), told


STEPS: tuple[tuple[Callable[[Walk], object], int], ...] = (
    (Walk.look, 8),
    (Walk.control, 6),
    (Walk.start, 5),
    (Walk.end, 3),
    (Walk.admit, 3),
    (Walk.wait, 3),
    (Walk.suspend, 1),
    (Walk.cancel, 1),
    (Walk.vanish, 1),
    (Walk.delete_child, 1),
    (Walk.lose_node, 1),
    (Walk.find_node, 1),
    (Walk.forget, 1),
)
WELL = (Walk.look, Walk.admit, Walk.control, Walk.start, Walk.look, Walk.finish, Walk.control)
WALKS, LENGTH, PATIENCE = 40, 200, 60


@pytest.mark.parametrize("queue", [False, True], ids=["alone", "in a queue"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_no_life_contradicts_itself_and_left_alone_every_one_ends(nodes, queue):
    ends: set[Phase | None] = set()
    moves = [move for move, weight in STEPS for _ in range(weight)]
    for seed in range(WALKS):
        walk = begun(random.Random(seed), nodes, queue)
        for _ in range(walk.luck.randrange(LENGTH)):
            move = walk.luck.choice(moves)
            walk.trace.append(move.__name__)
            move(walk)
        walk.ask(suspend=False)
        walk.find_node()
        for _ in range(PATIENCE):
            for move in WELL:
                walk.trace.append(move.__name__)
                move(walk)
            walk.now += timedelta(seconds=10)
            if walk.status.is_final:
                break
        assert walk.status.is_final, (seed, said(walk.status), walk.child, walk.trace[-20:])
        ends.add(walk.status.phase)
    assert {Phase.COMPLETED, Phase.CANCELLED} <= ends


def begun(luck: random.Random, nodes: int, queue: bool) -> Walk:
    """A job that has had its first look."""
    job = make_job(backoffLimit=luck.choice((0, 2, 10)), activeDeadlineSeconds=luck.choice((None, 9000)))
    labels = {names.QUEUE_LABEL: "q"} if queue else {}
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"labels": labels})})
    walk = Walk(job, luck, nodes)
    walk.look()
    walk.ask(resources=Resources(nodes=nodes))
    return walk
