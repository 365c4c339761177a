"""A sequence with images has the scores and gradients that the model itself gives it, and sees its own images alone."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from finetune_api.failures import FailureCode
from finetune_api.method import TrainingKind
from finetune_trainer.data.tokens import Conversation, Pair
from finetune_trainer.failures import RunFailed
from finetune_trainer.step.adapter import adapted_layers
from finetune_trainer.step.batch import conversation_batch, pair_batch
from finetune_trainer.step.levels import choose_level
from finetune_trainer.step.model import load_policy
from finetune_trainer.step.pixels import ImageProcessor
from finetune_trainer.step.recipe import Level
from finetune_trainer.step.weights import vision_of
from pictures import picture
from training import disturb, load, lora, start_folders

IMAGE = 8
"""The token of images."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processor(vision_model):
    return ImageProcessor(vision_model)


def file(**options) -> np.ndarray:
    return np.frombuffer(base64.b64decode(picture(**options).partition(",")[2]), np.uint8)


def pair(*colours: str, line: int = 1) -> Pair:
    """Images of 4 and then 6 tokens in a prompt, between words."""
    images = [file(width=16 + 8 * place, height=16, colour=colour) for place, colour in enumerate(colours)]
    prompt = [20, 21]
    for place in range(len(images)):
        prompt += [7, *[IMAGE] * (4 + 2 * place), 9, 30 + place]
    tokens = (np.array(part, np.int32) for part in (prompt, [40, 41, 42], [50, 51]))
    return Pair(line, *tokens, images=tuple(images))


def stock_sums(policy, rows, processor):
    """Of each answer, from the whole model's own logits."""
    causal, sums = policy.as_loaded(), []
    for row in rows:
        seen = processor(row.images).arguments if row.images else None
        for answer in (row.preferred, row.non_preferred):
            tokens = torch.from_numpy(np.concatenate([row.prompt, answer]).astype(np.int64))[None]
            logits = causal(input_ids=tokens, use_cache=False, **(seen(tokens, IMAGE) if seen else {})).logits
            logps = torch.log_softmax(logits[0, :-1], dim=-1).gather(1, tokens[0, 1:, None])
            sums.append(logps[len(row.prompt) - 1 :].sum())
    return torch.stack(sums)


def gradients(policy, sums):
    (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
    found = {name: p.grad for name, p in policy.trainable.items() if p.grad is not None}
    for parameter in policy.trainable.values():
        parameter.grad = None
    return found


def ours(policy, rows, processor):
    pixels = [processor(row.images) if row.images else None for row in rows]
    return policy.score(pair_batch(rows, Level.SINGLE, pixels))


@pytest.mark.parametrize("kind", ["LoRA", "LoRA and vision", "Full", "Full and vision"])
@pytest.mark.parametrize("again", [False, True], ids=["activations kept", "computed again"])
def test_scores_and_gradients_are_the_models_own(vision_model, processor, kind, again):
    policy = policy_of(vision_model, kind)
    disturb(policy)
    policy.checkpointing(again)
    policy.training(True)
    rows = [pair("red"), pair(), pair("blue", "green"), pair("green", "blue")]
    sums = ours(policy, rows, processor)
    expected = stock_sums(policy, rows, processor)
    torch.testing.assert_close(sums.float(), expected, rtol=0, atol=1e-4)
    found, right = gradients(policy, sums), gradients(policy, expected)
    assert found.keys() == right.keys()
    assert any("visual" in name for name in found) is kind.endswith("vision")
    for name, theirs in right.items():
        assert (found[name] - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name


def policy_of(model, kind):
    some = lora() if kind.startswith("LoRA") else None
    training = TrainingKind.LORA if some else TrainingKind.FULL
    return load_policy(start_folders(model), training, some, 7, CPU, vision=kind.endswith("vision"))


@pytest.mark.parametrize("kind", ["LoRA", "LoRA and vision", "Full", "Full and vision"])
def test_the_vision_encoder_moves_only_where_it_is_asked_to(vision_model, kind):
    policy = policy_of(vision_model, kind)
    encoder = vision_of(policy.base.causal)
    moving = {id(parameter) for parameter in policy.trainable.values()}
    in_encoder = [parameter for parameter in encoder.parameters() if id(parameter) in moving]
    assert bool(in_encoder) is kind.endswith("vision")
    assert len(moving) > len(in_encoder), "the language model moves in any case"
    if kind.startswith("LoRA"):
        names = {path.rsplit(".", 1)[-1] for path in adapted_layers(policy.root) if ".visual." in f".{path}"}
        assert names == ({"qkv", "proj", "linear_fc1", "linear_fc2"} if kind.endswith("vision") else set())
    elif kind.endswith("vision"):
        assert {id(parameter) for parameter in encoder.parameters()} <= moving


@torch.no_grad()
def test_an_encoder_that_stays_has_no_dropout_of_its_adapter(vision_model, processor, tmp_path):
    some = lora(dropout=0.5)
    first = load_policy(start_folders(vision_model), TrainingKind.LORA, some, 7, CPU, vision=True)
    disturb(first)
    first.saving()(tmp_path)
    policy = load(vision_model, lora=some, adapter=tmp_path)
    policy.training(True)
    seen = processor(pair("red").images)
    passes = [vision_of(policy.base.causal)(seen.values, grid_thw=seen.grid).pooler_output for _ in range(2)]
    torch.testing.assert_close(*passes, rtol=0, atol=0)


def test_a_named_layer_of_the_encoder_needs_it_to_be_trained(vision_model):
    start, some = start_folders(vision_model), lora(trainable_modules=("qkv",))
    kind = TrainingKind.LORA
    with pytest.raises(RunFailed) as end:
        load_policy(start, kind, some, 7, CPU)
    assert end.value.failure.code is FailureCode.ADAPTER_MODULES_UNKNOWN
    policy = load_policy(start, kind, some, 7, CPU, vision=True)
    assert all("visual" in path for path in adapted_layers(policy.root))


@torch.no_grad()
def test_an_answer_sees_its_images_and_no_others(vision_model, processor):
    policy = load(vision_model, lora=lora())
    one, two = pair("red", "blue"), pair("red", "white")
    alone = ours(policy, [one], processor)
    together = ours(policy, [two, one, pair()], processor)
    torch.testing.assert_close(together[2:4], alone, rtol=0, atol=1e-6)
    assert (together[:2] - alone).abs().min() > 1e-6
    blind = ours(policy, [Pair(1, one.prompt, one.preferred, one.non_preferred)], processor)
    assert (blind - alone).abs().min() > 1e-6


@torch.no_grad()
def test_a_conversation_sees_its_images(vision_model, processor):
    policy, row = load(vision_model, lora=lora()), pair("red", "blue")
    tokens = np.concatenate([row.prompt, row.preferred])
    talk = Conversation(1, tokens, np.arange(tokens.size) >= row.prompt.size, images=row.images)
    sums = policy.score(conversation_batch([talk], Level.SINGLE, [processor(talk.images)]))
    torch.testing.assert_close(sums, ours(policy, [row], processor)[:1], rtol=0, atol=1e-6)


def test_an_image_is_turned_as_its_camera_says(processor):
    upright = processor([file(width=24, height=16, kind="PNG")])
    turned = processor([file(width=24, height=16, kind="PNG", orientation=6)])
    assert upright.grid.tolist() == [[1, 4, 6]]
    assert turned.grid.tolist() == [[1, 6, 4]]


def test_rows_with_images_do_not_share_a_pass(vision_model, processor):
    rows = [pair("red"), pair("blue")]
    pixels = [processor(row.images) for row in rows]
    for level in (Level.SHARED, Level.PACKED):
        with pytest.raises(AssertionError, match="pass to itself"):
            pair_batch(rows, level, pixels)


def test_without_images_the_model_shares_prompts_as_any(vision_model):
    choice = choose_level(load(vision_model, lora=lora()), Level.SHARED, 64, 4096)
    assert (choice.level, choice.problem) == (Level.SHARED, None)
