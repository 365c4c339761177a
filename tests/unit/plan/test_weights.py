"""Which weights a job starts from: the runtime's list, the Hub at a revision, or others of the same architecture."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, before_start, make_job, make_runtime
from finetune_api.status import Resolved
from finetune_operator.plan.admit import runtime_of
from finetune_operator.plan.decide import decide
from finetune_operator.plan.trainer_config import trainer_config
from finetune_operator.settings import Settings

LISTED = [
    {"name": "tiny", "source": "hf://org/tiny"},
    {"name": "pinned", "source": "hf://org/tiny@abc"},
    {"name": "copied", "source": "pvc://finetune-weights/tiny"},
]


def start(spec: dict[str, Any], **runtime: Any) -> Any:
    """The starting weights that the trainer is told, or the sentence of the refusal."""
    job = make_job(**spec)
    claims = frozenset({"finetune-data", "finetune-models", "finetune-weights"})
    plan = decide(job, before_start(make_runtime(**runtime), claims=claims), Settings(), NOW)
    if plan.status.start_time is None:
        return plan.status.conditions[0].message
    resolved = plan.status.resolved or Resolved()
    return trainer_config(job, runtime_of(resolved), resolved, "out").start


@pytest.mark.parametrize(
    ("spec", "model", "same_as"),
    [
        ({"model": "org/tiny", "hfModelRevision": "v1"}, "hf://org/tiny@v1", None),
        ({"model": "hf://org/tiny", "hfModelRevision": "v1"}, "hf://org/tiny@v1", None),
        ({"model": "org/tiny", "fromHfModel": "me/own"}, "hf://me/own", "hf://org/tiny"),
        ({"model": "org/tiny@a", "fromHfModel": "hf://me/own@b"}, "hf://me/own@b", "hf://org/tiny@a"),
        ({"model": "org/tiny", "fromHfModel": "me/own", "hfModelRevision": "b"}, "hf://me/own@b", "hf://org/tiny"),
        (
            {"model": "pvc://finetune-weights/tiny", "fromHfModel": "me/own"},
            "hf://me/own",
            "pvc://finetune-weights/tiny",
        ),
    ],
)
def test_any_hub_model_at_a_revision(spec, model, same_as):
    told = start(spec)
    assert (told.model, told.same_as) == (model, same_as)


@pytest.mark.parametrize(
    ("spec", "model", "same_as"),
    [
        ({"model": "tiny", "hfModelRevision": "v1"}, "hf://org/tiny@v1", None),
        ({"model": "pinned", "fromHfModel": "me/own", "hfModelRevision": "v1"}, "hf://me/own@v1", "hf://org/tiny@abc"),
        ({"model": "copied", "fromHfModel": "me/own"}, "hf://me/own", "pvc://finetune-weights/tiny"),
    ],
)
def test_a_listed_model_at_a_revision(spec, model, same_as):
    told = start(spec, models=LISTED)
    assert (told.model, told.same_as) == (model, same_as)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"model": "pinned", "hfModelRevision": "v1"},
            "hfModelRevision is v1, but the runtime has model pinned as hf://org/tiny@abc, which settles it:"
            " leave it out",
        ),
        (
            {"model": "copied", "hfModelRevision": "v1"},
            "hfModelRevision is v1, but the runtime has model copied as pvc://finetune-weights/tiny, which is not on"
            " the Hub: leave it out",
        ),
        (
            {"model": "other", "fromHfModel": "me/own"},
            "model is other, which is not in the model list of FineTuneRuntime gpu: choose one of tiny, pinned, copied",
        ),
    ],
)
def test_what_the_runtime_has_settled_stands(spec, sentence):
    assert start(spec, models=LISTED) == sentence


def test_weights_of_the_user_s_choice_need_an_entry_even_where_the_model_is_listed():
    closed = {"claims": {"read": ["*"], "write": ["*"]}, "uriPrefixes": {"read": ["hf://org/"]}}
    said = start({"model": "tiny", "fromHfModel": "me/own"}, models=LISTED, access=closed)
    assert said.startswith("fromHfModel is hf://me/own, and FineTuneRuntime gpu does not allow this URI")
    assert '"hf://me/" to its spec.access.uriPrefixes.read' in said


def test_the_volume_of_the_model_that_they_stand_for_is_mounted_and_must_be_there():
    job = make_job(model="copied", fromHfModel="me/own")
    observed = before_start(make_runtime(models=LISTED), claims=frozenset({"finetune-data", "finetune-models"}))
    plan = decide(job, observed, Settings(), NOW)
    assert plan.status.conditions[0].reason == "ClaimNotFound"
    assert "model is pvc://finetune-weights/tiny" in plan.status.conditions[0].message
