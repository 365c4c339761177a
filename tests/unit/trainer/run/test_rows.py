"""Rows under each objective: what their losses are divided by, what a weight does, and which metrics they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_api.evaluation import measured
from finetune_api.method import Preference, TrainingMethod
from finetune_api.metrics import STATUS_NAMES
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache
from finetune_trainer.run.rows import ConversationRows, PreferenceRows
from finetune_trainer.step.gradient import accumulate
from finetune_trainer.step.recipe import Level, Recipe
from training import disturb, load, lora

WEIGHTS = [1.0, 2.0, 0.25, 1.0]
END = 2
"""End-of-turn token of the tiny tokenizer."""
PAIRS = [
    ([1, 40, 41], [50, 51, 52, END], [60, END]),
    ([1, 40, 42, 43, 44], [0, 0, 7, 0, END], [61, 62, 63, 64, 65, END]),
    ([1], [END], [66, END]),
    ([1, 45], [53, 54, END], [53, 67, END]),
]
"""Prompt, preferred, non-preferred; the second preferred answer is mostly token 0."""
SIMPO = Preference(beta=2.0, per_token=True, reference_free=True, gamma=0.5)
ALWAYS = {
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
}
KL = {"kl", "kl/chosen", "kl/rejected", "kl_per_token"}


def ids(values):
    return np.array(values, dtype=np.int32)


def preference_rows(folder, objective, weights=WEIGHTS):
    pairs = [Pair(i, *map(ids, parts), weight) for i, (parts, weight) in enumerate(zip(PAIRS, weights, strict=True))]
    write_cache(folder, CacheKind.PREFERENCE, pairs)
    generator = torch.Generator().manual_seed(2)
    reference = -10 * torch.rand(len(PAIRS), 2, dtype=torch.float64, generator=generator)
    return PreferenceRows(open_cache(folder), objective, None if objective.reference_free else reference)


def conversation_rows(folder, weights):
    masks = [[0, 1, 1, 0, 1], [0, 0, 1], [0, 1]]
    rows = [
        Conversation(i, ids(range(10, 10 + len(mask))), np.array(mask, dtype=bool), weight)
        for i, (mask, weight) in enumerate(zip(masks, weights, strict=True))
    ]
    write_cache(folder, CacheKind.CONVERSATION, rows)
    return ConversationRows(open_cache(folder))


@pytest.fixture
def sums():
    return -20 * torch.rand(2 * len(PAIRS), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def each_loss(rows, sums):
    """The loss of every row, weights left out."""
    weight = rows.cache.weights
    return [rows.loss(sums.view(-1, 2)[i].flatten(), [i]).item() / weight[i] for i in range(len(rows.cache))]


def test_lengths_are_those_of_the_answers_end_of_turn_included(tmp_path):
    rows = preference_rows(tmp_path / "cache", SIMPO)
    assert rows.lengths.tolist() == [[4, 2], [5, 6], [1, 2], [3, 3]]


@pytest.mark.parametrize("objective", [Preference(beta=0.3), Preference(rpo_alpha=2.0), SIMPO])
def test_a_weight_multiplies_the_loss_of_its_pair_rpo_term_included(tmp_path, sums, objective):
    rows = preference_rows(tmp_path / "cache", objective)
    plain = preference_rows(tmp_path / "plain", objective, [1.0] * len(PAIRS))
    losses = each_loss(plain, sums)
    weighted = sum(w * loss for w, loss in zip(WEIGHTS, losses, strict=True))
    order = range(len(PAIRS))
    assert rows.loss(sums, order).item() == pytest.approx(weighted, rel=1e-12)
    assert rows.units(order) == len(PAIRS), "a weight does not count as pairs"
    measured, unweighted = rows.metrics(sums, order).read(), plain.metrics(sums, order).read()
    assert measured.pop("loss") == pytest.approx(weighted / len(PAIRS), rel=1e-12)
    del unweighted["loss"]
    assert measured == unweighted


def test_a_weight_follows_its_row_into_any_company(tmp_path, sums):
    rows = preference_rows(tmp_path / "cache", Preference())
    order = [2, 0, 3, 1]
    shuffled = sums.view(-1, 2)[order].flatten()
    assert rows.loss(shuffled, order).item() == pytest.approx(rows.loss(sums, range(4)).item(), rel=1e-12)


def test_sft_weighs_rows_and_divides_by_all_target_tokens(tmp_path):
    rows = conversation_rows(tmp_path / "cache", [1.0, 3.0, 0.5])
    sums = torch.tensor([-4.0, -2.0, -1.0], dtype=torch.float64)
    assert rows.units(range(3)) == 3 + 1 + 1
    assert rows.loss(sums, range(3)).item() == 4.0 + 3 * 2.0 + 0.5 * 1.0
    assert rows.metrics(sums, range(3)).read() == {"loss": (4.0 + 6.0 + 0.5) / 5}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ALWAYS | KL),
        ({"normalizeLogratiosByLength": True}, ALWAYS | KL),
        ({"rpoAlpha": 0.5}, ALWAYS | KL | {"nll"}),
        ({"referenceFree": True}, ALWAYS),
        ({"beta": 2, "simpoGamma": 1}, ALWAYS),
        ({"beta": 2, "simpoGamma": 1, "rpoAlpha": 1}, ALWAYS | {"nll"}),
    ],
)
def test_each_objective_gives_the_values_of_the_table_that_it_has(tmp_path, sums, options, names):
    method = TrainingMethod.model_validate({"type": "DPO", "dpo": options})
    found = preference_rows(tmp_path / "cache", method.preference).metrics(sums, range(len(PAIRS))).read()
    assert found.keys() == names
    assert {STATUS_NAMES[name] for name in names} == measured(method), "what early stopping may watch"


@pytest.mark.parametrize("objective", [Preference(rpo_alpha=0.5), SIMPO])
def test_nothing_is_read_from_the_device_before_it_is_asked_for(tmp_path, sums, objective):
    """On the meta device nothing can be read at all."""
    rows = preference_rows(tmp_path / "cache", objective)
    measured = rows.metrics(sums.to("meta"), range(len(PAIRS)))
    assert measured.values.device.type == "meta"
    assert rows.loss(sums.to("meta"), [0, 1, 2, 3]).device.type == "meta"
    conversations = conversation_rows(tmp_path / "conversations", [1.0, 1.0, 1.0])
    assert conversations.metrics(sums[:3].to("meta"), range(3)).values.device.type == "meta"


def test_values_of_simpo(tmp_path):
    rows = preference_rows(tmp_path / "cache", SIMPO)
    sums = torch.tensor([-8.0, -2.0, -5.0, -12.0, -1.0, -4.0, -3.0, -3.0], dtype=torch.float64)
    values = rows.metrics(sums, range(4)).read()
    chosen, rejected = [-2.0, -1.0, -1.0, -1.0], [-1.0, -2.0, -2.0, -1.0]
    assert values["rewards/chosen"] == pytest.approx(2 * sum(chosen) / 4)
    assert values["rewards/rejected"] == pytest.approx(2 * sum(rejected) / 4)
    assert values["rewards/margins"] == pytest.approx(2 * (sum(chosen) - sum(rejected)) / 4)
    assert values["rewards/accuracies"] == 0.5, "a tie is no win, and gamma moves no pair over the border"
    assert values["logps/chosen"] == pytest.approx(-17 / 4)


def test_nll_is_the_mean_over_answers_of_the_mean_over_their_tokens(tmp_path):
    rows = preference_rows(tmp_path / "cache", Preference(rpo_alpha=3.0))
    sums = torch.tensor([-8.0, 0.0, -5.0, 0.0, -7.0, 0.0, -6.0, 0.0], dtype=torch.float64)
    assert rows.metrics(sums, range(4)).read()["nll"] == pytest.approx((8 / 4 + 5 / 5 + 7 / 1 + 6 / 3) / 4)


@pytest.mark.parametrize("objective", [SIMPO, Preference(beta=0.2, rpo_alpha=1.5)])
def test_gradients_on_a_model_are_those_of_the_formula_on_its_logits(tmp_path, tiny_model, objective):
    """The whole way from tokens to gradients; the second pair's preferred answer is mostly token 0, which counts."""
    policy = load(tiny_model, lora=lora())
    disturb(policy)
    rows = preference_rows(tmp_path / "cache", objective)
    accumulate(policy, rows, Recipe(Level.SHARED, 30), range(4), lambda: None)
    found = {name: parameter.grad for name, parameter in policy.trainable.items()}
    for parameter in policy.trainable.values():
        parameter.grad = None
    total = 0.0
    for row, (prompt, preferred, other) in enumerate(PAIRS):
        won, lost = (token_logps(policy, prompt, answer) for answer in (preferred, other))
        if objective is SIMPO:
            loss = -torch.log(torch.sigmoid(2.0 * (won.mean() - lost.mean()) - 0.5))
        else:
            reference = rows.reference[row]
            loss = -torch.log(torch.sigmoid(0.2 * (won.sum() - reference[0] - lost.sum() + reference[1])))
            loss = loss - 1.5 * won.mean()
        total = total + WEIGHTS[row] * loss / len(PAIRS)
    total.backward()
    scale = max(float(gradient.abs().max()) for gradient in found.values())
    for name, parameter in policy.trainable.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-5 * scale)


def token_logps(policy, prompt, answer):
    """log p of each answer token from the whole model's logits."""
    line = torch.tensor([prompt + answer])
    logits = policy.as_loaded()(input_ids=line, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)
