"""Warnings about beta: given where a loss per token meets a beta for whole answers, silent everywhere else."""

from __future__ import annotations

import pytest

from finetune_api.advice import beta_warning
from finetune_api.method import TrainingMethod
from finetune_api.report import WarningCode
from manifests import EXAMPLES, read


def warning(**dpo: object) -> tuple[WarningCode, str] | None:
    return beta_warning(TrainingMethod.model_validate({"type": "DPO", "dpo": dpo}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.05, "rpoAlpha": 1, "labelSmoothing": 0.1},
        {"beta": 0.1, "referenceFree": True},
        {"beta": 1, "normalizeLogratiosByLength": True},
        {"beta": 5, "normalizeLogratiosByLength": True, "referenceFree": True},
        {"beta": 2, "simpoGamma": 1},
        {"beta": 1, "simpoGamma": 50},
        {"beta": 0.1, "simpoGamma": 0, "normalizeLogratiosByLength": False},
    ],
)
def test_silent(options) -> None:
    assert warning(**options) is None


def test_silent_for_sft() -> None:
    assert beta_warning(TrainingMethod()) is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_silent_for_the_examples(path) -> None:
    methods = [document.get("spec", {}).get("trainingMethod", {}) for document in read(path)]
    assert [beta_warning(TrainingMethod.model_validate(method)) for method in methods] == [None] * len(methods)


@pytest.mark.parametrize(
    "options", [{"normalizeLogratiosByLength": True}, {"normalizeLogratiosByLength": True, "referenceFree": True}]
)
def test_beta_low(options) -> None:
    code, sentence = warning(**options)
    assert code is WarningCode.BETA_LOW
    assert sentence.startswith("dpo.beta is 0.1 while log-ratios are divided by length")
    assert ("its reference" in sentence) is ("referenceFree" not in options)
    assert "set beta to 2 to 10" in sentence


def test_gamma_dominates() -> None:
    code, sentence = warning(beta=0.5, simpoGamma=1.25, rpoAlpha=1)
    assert code is WarningCode.GAMMA_DOMINATES
    assert sentence.startswith("dpo.simpoGamma is 1.25 and dpo.beta 0.5")
    assert "set beta to 2 to 10" in sentence
