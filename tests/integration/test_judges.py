"""Generated manifests: the API server and pydantic give the same verdict, the same message and the same reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from apiserver import Api
from finetune_api.job import job_from
from judges import (
    as_kubectl_sends,
    broken_by_change,
    collection,
    disagreement,
    pydantic_verdict,
    server_verdict,
    verdict_of,
)
from manifests import job
from specs import (
    bases,
    breaking,
    edits,
    edits_of_a_cancelled_job,
    job_rules,
    jobs,
    runtime_rules,
    runtimes,
    runtimes_breaking,
    transition_rules,
)

ANY_JOBS, PER_RULE, RUNTIMES, EDITS = 2400, 60, 400, 60
OFTEN = 20
"""Times that each rule must be seen broken."""
MINORITY = 0.3
"""Both verdicts must be common, or the comparison would prove little."""

thorough = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@dataclass
class Verdicts:
    """What was seen: verdicts, and how often each rule was broken."""

    accepted: Counter[bool] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Manifests that were judged."""
        return self.accepted.total()

    @property
    def minority(self) -> float:
        """Share of the rarer verdict."""
        return min(self.accepted[True], self.accepted[False]) / self.total

    def table(self, what: str, rules: list[str]) -> str:
        """How many were accepted and refused, and how often each rule was broken, the rarest first."""
        head = f"{self.accepted[True]} {what} accepted, {self.accepted[False]} refused; how often each rule was broken:"
        rarest_first = sorted(rules, key=lambda rule: self.broken[rule])
        return "\n".join(["", head, *(f"{self.broken[rule]:6d}  {rule}" for rule in rarest_first)])


def _judge(api: Any, strategy: Any, examples: int, seen: Verdicts) -> None:
    """Hold both judges against each other on `examples` generated manifests."""

    @settings(thorough, max_examples=examples)
    @given(strategy)
    def compare(manifest: dict[str, Any]) -> None:
        server, ours = server_verdict(api, manifest), pydantic_verdict(manifest)
        assert disagreement(server, ours) is None, f"{disagreement(server, ours)}\n{manifest['spec']}"
        seen.accepted[server.accepted] += 1
        seen.broken.update(server.rules)

    compare()


def test_jobs_are_judged_alike_and_every_rule_is_broken_often(api, capsys) -> None:
    seen = Verdicts()
    _judge(api, jobs(), ANY_JOBS, seen)
    for rule in job_rules():
        _judge(api, breaking(rule), PER_RULE, seen)
    with capsys.disabled():
        print(seen.table("jobs", job_rules()))
    assert seen.total >= ANY_JOBS
    assert seen.minority >= MINORITY
    assert min(seen.broken[rule] for rule in job_rules()) >= OFTEN


def test_runtimes_are_judged_alike_and_every_rule_is_broken_often(api, capsys) -> None:
    seen, targeted = Verdicts(), Verdicts()
    _judge(api, runtimes(), RUNTIMES, seen)
    for rule in runtime_rules():
        _judge(api, runtimes_breaking(rule), PER_RULE, targeted)
    seen.broken.update(targeted.broken)
    with capsys.disabled():
        print(seen.table("runtimes", runtime_rules()))
    assert seen.total >= RUNTIMES
    assert seen.minority >= MINORITY
    assert min(seen.broken[rule] for rule in runtime_rules()) >= OFTEN


def test_edits_of_a_started_job_are_judged_alike_and_every_rule_is_broken_often(api, namespace, capsys) -> None:
    seen = Verdicts()
    for number, manifest in enumerate(bases()):
        manifest["spec"]["managedBy"] = "example.com/tests"  # or an operator would write beside us
        spec = {**manifest["spec"], "cancel": True}
        cancelled = {**manifest, "metadata": {"name": f"cancelled-{number}"}, "spec": spec}
        manifest["metadata"]["name"] = f"started-{number}"
        _same_verdicts_on_edits(api, namespace, manifest, edits, seen)
        _same_verdicts_on_edits(api, namespace, cancelled, edits_of_a_cancelled_job, seen)
    with capsys.disabled():
        print(seen.table("edits", transition_rules()))
    assert seen.accepted[True] >= 15, "few edits are allowed, but some must be for the comparison to prove much"
    assert min(seen.broken[rule] for rule in transition_rules()) >= OFTEN


def _same_verdicts_on_edits(api: Api, namespace: str, manifest: dict[str, Any], strategy: Any, seen: Verdicts) -> None:
    old, where = _start(api, namespace, manifest)
    manifest["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]

    @settings(thorough, max_examples=EDITS)
    @given(strategy(manifest))
    def compare(edited: dict[str, Any]) -> None:
        server = verdict_of(api.put(f"{where}?dryRun=All&fieldValidation=Strict", as_kubectl_sends(edited)))
        ours = pydantic_verdict(edited)
        broken = frozenset(broken_by_change(job_from(old), job_from(edited))) if ours.accepted else frozenset()
        assert server.accepted == (ours.accepted and not broken), (server, ours, broken)
        assert broken <= server.rules
        seen.accepted[server.accepted] += 1
        seen.broken.update(broken)

    compare()


def _start(api: Api, namespace: str, manifest: dict[str, Any]) -> tuple[dict[str, Any], str]:
    made = api.post(collection(manifest, namespace), manifest).must()
    where = f"{collection(manifest, namespace)}/{made['metadata']['name']}"
    return api.patch(f"{where}/status", {"status": {"startTime": "2026-01-01T00:00:00Z"}}).must(), where


def test_every_option_of_dpo_may_be_zero_or_false(api) -> None:
    """A whole number beside a bound that is none: the API server would cut the bound down to 0."""
    dpo = {"beta": 1, "rpoAlpha": 0, "simpoGamma": 0, "labelSmoothing": 0, "referenceFree": False}
    manifest = job(trainingMethod={"type": "DPO", "dpo": dpo})
    assert server_verdict(api, manifest).refusals == pydantic_verdict(manifest).refusals == frozenset()
