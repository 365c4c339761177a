"""Step by step the same numbers as TRL, the trainer that most people compare with, where both mean the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from peers import BATCH, STEPS, Task, cpo_steps, dpo_steps, our_steps
from rows import LLAMA_LIKE
from tiny import save_model
from training import preference_rows


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A random Llama whose template ends an answer with EOS: after anything else CPOTrainer adds another EOS."""
    folder = save_model(tmp_path_factory.mktemp("parity") / "model", hidden=32, layers=2, heads=4)
    (folder / "chat_template.jinja").write_text(LLAMA_LIKE)
    return folder


@pytest.fixture
def task(model, tmp_path):
    return lambda options, rows=None, **more: Task(model, tmp_path, rows or any_rows(), options, **more)


def any_rows():
    """Answers of many lengths; the preferred ones are the shorter. The last step has half a batch."""
    return preference_rows(BATCH * STEPS - BATCH // 2)


def equal_rows():
    """The same with preferred answers of one length, in bytes, which are the tiny tokenizer's tokens."""
    rows = any_rows()
    for row in rows:
        (answer,) = row["preferred_output"]
        answer["content"] = answer["content"][:23].ljust(24, "o")
    return rows


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.loss == pytest.approx(other.loss, abs=1e-5)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert abs(ours[0].loss - ours[-1].loss) > 0.01, "the weights moved"


@pytest.mark.parametrize("kind", ["LoRA", "Full"])
def test_dpo(task, kind):
    both = task({"beta": 0.1}, kind=kind)
    assert_same(our_steps(both)[0], dpo_steps(both, beta=0.1))


def test_dpo_per_token(task):
    both = task({"beta": 5, "normalizeLogratiosByLength": True})
    assert_same(our_steps(both)[0], dpo_steps(both, beta=5.0, loss_type="sigmoid_norm"))


def test_rpo_where_preferred_answers_are_of_one_length(task):
    both = task({"beta": 0.1, "rpoAlpha": 0.5}, equal_rows())
    assert_same(our_steps(both)[0], dpo_steps(both, beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]))


def test_rpo_elsewhere_differs_by_the_mean_that_is_taken(task, model):
    """TRL's term is a mean over the tokens of a micro-batch, so long answers weigh more and the split matters; ours is
    the paper's, a mean over pairs of each answer's own mean. Nothing else differs."""
    alpha = 0.5
    both = task({"beta": 0.1, "rpoAlpha": alpha})
    ours, pairs = our_steps(both)
    theirs = dpo_steps(both, beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, alpha])
    nlls = preferred_nlls(model, pairs[:BATCH])
    by_answer = sum(float(nll.mean()) for nll in nlls) / BATCH
    by_token = float(torch.cat(nlls).mean())
    assert abs(by_answer - by_token) > 1e-3
    assert ours[0].loss - theirs[0].loss == pytest.approx(alpha * (by_answer - by_token), abs=1e-5)


def preferred_nlls(model, pairs):
    """-log p of every token of each preferred answer, under the starting weights."""
    causal = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    nlls = []
    for pair in pairs:
        line = torch.from_numpy(np.concatenate([pair.prompt, pair.preferred]).astype(np.int64))[None]
        with torch.no_grad():
            logits = causal(input_ids=line).logits[0, len(pair.prompt) - 1 : -1]
        nlls.append(-torch.log_softmax(logits, -1).gather(1, line[0, len(pair.prompt) :, None]).squeeze(1))
    return nlls


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo(task, smoothing):
    """CPOTrainer adds an NLL term unless cpo_alpha is 0; its simpo_gamma is absolute, as ours is."""
    both = task({"beta": 2, "simpoGamma": 1, "labelSmoothing": smoothing})
    options = {"loss_type": "simpo", "simpo_gamma": 1.0, "cpo_alpha": 0.0, "label_smoothing": smoothing}
    assert_same(our_steps(both)[0], cpo_steps(both, beta=2.0, **options))
