"""Generated manifests: the API server and pydantic give the same verdict, the same message and the same reading."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from judges import disagreement, pydantic_verdict, server_verdict
from specs import jobs, runtimes

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
