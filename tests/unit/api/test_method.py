"""The objective: what absent options become, what a margin turns on, and blocks of another method."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_api.job import job_from
from finetune_api.method import Dpo, Preference, Sft, TrainingMethod, TrainOnInputs
from manifests import job

DPO_VALUES = {
    "beta": 0.1,
    "normalizeLogratiosByLength": False,
    "rpoAlpha": 0,
    "simpoGamma": 0,
    "referenceFree": False,
    "labelSmoothing": 0,
}


def method(**dpo: object) -> TrainingMethod:
    return TrainingMethod.model_validate({"type": "DPO", "dpo": dpo})


def test_absent_options_are_plain_dpo() -> None:
    plain = Preference(beta=0.1, per_token=False, reference_free=False, gamma=0.0, rpo_alpha=0.0, label_smoothing=0.0)
    assert TrainingMethod.model_validate({"type": "DPO"}).preference == plain
    assert method(**DPO_VALUES).preference == plain


def test_given_options_are_used() -> None:
    given = method(beta=2, normalizeLogratiosByLength=True, rpoAlpha=0.5, referenceFree=True, labelSmoothing=0.1)
    assert given.preference == Preference(
        beta=2.0, per_token=True, reference_free=True, gamma=0.0, rpo_alpha=0.5, label_smoothing=0.1
    )


@pytest.mark.parametrize("contrary", [{}, {"normalizeLogratiosByLength": False, "referenceFree": False}])
def test_a_margin_counts_per_token_and_needs_no_reference(contrary) -> None:
    simpo = method(beta=2, simpoGamma=1, rpoAlpha=1, **contrary).preference
    assert simpo == Preference(beta=2.0, per_token=True, reference_free=True, gamma=1.0, rpo_alpha=1.0)


@pytest.mark.parametrize("field", DPO_VALUES)
def test_an_option_of_dpo_is_refused_for_sft_whatever_its_value(field) -> None:
    assert set(DPO_VALUES) == {field.alias for field in Dpo.model_fields.values()}
    with pytest.raises(ValidationError, match=f"dpo.{field} is only supported for DPO training"):
        job_from(job(trainingMethod={"type": "SFT", "dpo": {field: DPO_VALUES[field]}}))


def test_train_on_inputs_is_refused_for_dpo() -> None:
    assert list(Sft.model_fields) == ["train_on_inputs"]
    with pytest.raises(ValidationError, match="trainOnInputs is only supported for SFT training"):
        job_from(job(trainingMethod={"type": "DPO", "sft": {"trainOnInputs": "Auto"}}))


def test_each_option_of_another_method_gets_its_own_sentence() -> None:
    with pytest.raises(ValidationError) as refused:
        job_from(job(trainingMethod={"type": "SFT", "dpo": DPO_VALUES}))
    assert [error["msg"].split()[0] for error in refused.value.errors()] == [f"dpo.{field}" for field in DPO_VALUES]


@pytest.mark.parametrize("choice", TrainOnInputs)
def test_train_on_inputs(choice) -> None:
    assert TrainingMethod.model_validate({"sft": {"trainOnInputs": choice}}).train_on_inputs is choice


@pytest.mark.parametrize("block", [{}, {"sft": {}}, {"sft": {"trainOnInputs": None}}])
def test_train_on_inputs_is_auto_unless_said_otherwise(block) -> None:
    assert TrainingMethod.model_validate(block).train_on_inputs is TrainOnInputs.AUTO


@pytest.mark.parametrize("value", [0, 0.0, 0.25, 0.499999])
def test_label_smoothing(value) -> None:
    assert method(labelSmoothing=value).preference.label_smoothing == value


@pytest.mark.parametrize("value", [0.5, 0.75, 1])
def test_half_of_the_labels_or_more_cannot_be_wrong(value) -> None:
    with pytest.raises(ValidationError, match=r"labelSmoothing must be at least 0 and below 0\.5"):
        method(labelSmoothing=value)
