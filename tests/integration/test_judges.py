"""Generated manifests: the API server and pydantic give the same verdict, the same message and the same reading."""

from __future__ import annotations

from collections import Counter
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
from specs import bases, edits, jobs, runtimes

MINORITY = 0.3
"""Both verdicts must be common, or the comparison would prove little."""

thorough = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


def _same_verdicts(api: Any, strategy: Any, examples: int) -> None:
    seen: Counter[bool] = Counter()

    @settings(thorough, max_examples=examples)
    @given(strategy)
    def compare(manifest: dict[str, Any]) -> None:
        server, ours = server_verdict(api, manifest), pydantic_verdict(manifest)
        assert disagreement(server, ours) is None, f"{disagreement(server, ours)}\n{manifest['spec']}"
        seen[server.accepted] += 1

    compare()
    total = sum(seen.values())
    assert total >= examples
    assert min(seen[True], seen[False]) >= MINORITY * total, seen


def test_jobs_are_judged_alike(api) -> None:
    _same_verdicts(api, jobs(), 600)


def test_runtimes_are_judged_alike(api) -> None:
    _same_verdicts(api, runtimes(), 300)


def test_edits_of_a_started_job_are_judged_alike(api, namespace) -> None:
    seen: Counter[bool] = Counter()
    for number, manifest in enumerate(bases()):
        manifest["metadata"]["name"] = f"started-{number}"
        _same_verdicts_on_edits(api, namespace, manifest, seen)
    assert seen[True] >= 15, "few edits are allowed, but some must be for the comparison to prove much"


def _same_verdicts_on_edits(api: Api, namespace: str, manifest: dict[str, Any], seen: Counter[bool]) -> None:
    old, where = _start(api, namespace, manifest)
    manifest["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]

    @settings(thorough, max_examples=60)
    @given(edits(manifest))
    def compare(edited: dict[str, Any]) -> None:
        server = verdict_of(api.put(f"{where}?dryRun=All&fieldValidation=Strict", as_kubectl_sends(edited)))
        ours = pydantic_verdict(edited)
        broken = frozenset(broken_by_change(job_from(old), job_from(edited))) if ours.accepted else frozenset()
        assert server.accepted == (ours.accepted and not broken), (server, ours, broken)
        assert broken <= server.rules
        seen[server.accepted] += 1

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
