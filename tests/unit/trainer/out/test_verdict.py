"""The sentences and figures that a person decides by."""

from __future__ import annotations

import pytest

from finetune_trainer.out.course import Curve
from finetune_trainer.out.verdict import verdict
from reports import SFT, checkpoint, facts

EARLY_STOP = {"metric": "loss", "step": 60, "evaluations": 2, "bestStep": 40, "bestValue": 0.4}


def evaluated(*losses, accuracy=0.8125, margin=1.25):
    count = len(losses)
    return {
        "eval/loss": Curve.of(*enumerate(losses)),
        "eval/rewards/accuracies": Curve.of((0, 0.0), (count - 1, accuracy)),
        "eval/rewards/margins": Curve.of((0, 0.0), (count - 1, margin)),
    }


def test_the_result_is_said_in_a_sentence():
    found = verdict(facts(), evaluated(0.6931, 0.5, 0.4))
    assert (found.state, found.sentences) == (
        "completed",
        [
            "On 16 validation pairs the loss fell from 0.6931 to 0.4000, and the preferred answer has the higher reward"
            " in 81.2 % of them; the margin is 1.25 on average.",
        ],
    )


def test_a_loss_that_rose_did_not_fall():
    (sentence,) = verdict(facts(config=SFT), {"eval/loss": Curve.of((0, 1.0), (5, 1.5))}).sentences
    assert sentence == "On 16 validation rows the loss rose from 1.000 to 1.500."


def test_before_the_first_step_the_rewards_of_a_reference_say_nothing():
    keys = {key.name: (key.before, key.now) for key in verdict(facts(), evaluated(0.6931, 0.4)).keys}
    assert keys == {
        "Loss": ("0.6931", "0.4000"),
        "Reward accuracy": ("", "81.2 %"),
        "Reward margin": ("", "+1.25"),
    }
    free = facts(config={"trainingMethod": {"type": "DPO", "dpo": {"referenceFree": True}}})
    keys = {key.name: (key.before, key.now) for key in verdict(free, evaluated(0.6931, 0.4)).keys}
    assert keys["Reward accuracy"] == ("0 %", "81.2 %")


@pytest.mark.parametrize(
    ("best", "sentence"),
    [
        (100, "The last evaluation was the best one: take the final checkpoint."),
        (
            40,
            "The best evaluation was that of step 40 (loss 0.4000); none since was better: prefer dpo:40 to the final"
            " checkpoint if loss is what counts.",
        ),
    ],
)
def test_it_says_which_checkpoint_to_take(best, sentence):
    listed = [checkpoint(40, best=best == 40, evalLoss=0.4), checkpoint(100, "Final", best=best == 100, evalLoss=0.5)]
    assert verdict(facts(checkpoints=listed), evaluated(0.7, 0.4, 0.5)).sentences[-1] == sentence


def test_an_early_stop_says_why():
    found = verdict(facts(earlyStop=EARLY_STOP), evaluated(0.7, 0.4))
    assert found.state == "stopped early"
    assert found.sentences[0] == ("Training ended after step 60 of 100, because loss did not improve in 2 evaluations.")


def test_a_failure_is_the_first_thing_said():
    failure = {"code": "Stopped", "args": {"step": "7"}}
    found = verdict(facts(failure=failure), {"train/loss": Curve.of((1, 0.7), (2, 90.0))})
    assert found.state == "failed"
    assert found.sentences[0][0].isupper()
    assert len(found.sentences) == 1


def test_without_evaluations_it_says_so_and_takes_the_training():
    loss = Curve.of(*((step, 0.7 if step <= 10 else 0.3) for step in range(1, 101)))
    found = verdict(facts(), {"train/loss": loss})
    assert found.sentences == [
        "The training loss fell from 0.7000 to 0.3000. Set validationFile and evaluation.nEvals to learn how it does on"
        " rows that it was not trained on."
    ]
    assert [(key.now, key.note) for key in found.keys] == [("0.3000", "training rows, mean of the last steps")]


def test_sft_has_a_perplexity():
    keys = verdict(facts(config=SFT), {"eval/loss": Curve.of((0, 2.0), (9, 1.0))}).keys
    assert [(key.name, key.before, key.now) for key in keys][-1] == ("Perplexity", "7.39", "2.72")
    enormous = verdict(facts(config=SFT), {"eval/loss": Curve.of((0, 2.0), (9, 1e9))}).keys
    assert enormous[-1].now == "1e304"


@pytest.mark.parametrize("course", [{}, {"train/loss": Curve.of((1, 0.7))}, {"eval/loss": Curve.of((0, 0.7))}])
def test_hardly_anything_is_something_too(course):
    assert verdict(facts(), course).sentences
