"""Starting weights and what is trained on them, saved so that plain transformers and peft read them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
)

from finetune_trainer.failures import RunFailed
from finetune_trainer.step.logps import sequence_logps
from finetune_trainer.step.model import choose_device
from finetune_trainer.step.weights import load_base
from training import disturb, load, lora, start_folders

LINES = torch.randint(10, 300, (3, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=LINES, use_cache=False).logits


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_saved_full_weights_load_with_plain_transformers(tiny_model, tmp_path):
    policy = load(tiny_model)
    disturb(policy)
    policy.saving()(tmp_path)
    assert torch.equal(logits(plain(tmp_path)), logits(policy.root))
    again = load(tmp_path, lora=lora())
    assert torch.equal(logits(again.root), logits(policy.root)), "LoRA goes on from full weights"


def small_llama(folder, dtype=torch.float32, **config):
    settings = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, **config}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, num_key_value_heads=2, **settings))
    model.to(dtype).save_pretrained(folder)
    return folder


def test_the_base_drops_out_nothing_in_training_and_its_published_configuration_still_does(tmp_path):
    policy = load(small_llama(tmp_path / "base", attention_dropout=0.5))
    policy.training(True)
    assert torch.equal(policy.root(input_ids=LINES).logits, policy.root(input_ids=LINES).logits)
    (tmp_path / "saved").mkdir()
    policy.saving()(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["attention_dropout"] == 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_full_weights_are_trained_in_fp32_and_published_in_the_precision_of_the_base(tmp_path, tied):
    policy = load(small_llama(tmp_path / "base", torch.bfloat16, tie_word_embeddings=tied))
    assert {p.dtype for p in policy.trainable.values()} == {torch.float32}
    (tmp_path / "saved").mkdir()
    policy.saving()(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == load_file(tmp_path / "base" / "model.safetensors").keys(), "a tied head is kept once"
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tied_head_sums_the_gradients_of_both_its_uses(tmp_path):
    """Against two separate copies of the matrix, which autograd keeps apart."""
    policy = load(small_llama(tmp_path / "base", tie_word_embeddings=True))
    inputs, targets = LINES[:1, :-1], LINES[0, 1:]
    states = policy.backbone(input_ids=inputs, use_cache=False).last_hidden_state[0]
    sequence_logps(states, policy.head, targets, torch.zeros_like(targets), 1).sum().backward()

    model = plain(tmp_path / "base")
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    torch.log_softmax(model(input_ids=inputs).logits[0], -1).gather(1, targets[:, None]).sum().backward()
    embedding, head = model.model.embed_tokens.weight.grad, model.lm_head.weight.grad
    assert min(embedding.abs().max(), head.abs().max()) > 1e-3
    tied = policy.trainable["model.embed_tokens.weight"].grad
    torch.testing.assert_close(tied, embedding + head, rtol=1e-5, atol=1e-5)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    folder = small_llama(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match=r"1 weights are missing .* model.norm.weight"):
        load(folder)


def test_weights_that_are_not_finite_are_told_as_such(tmp_path):
    folder = small_llama(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match="cannot be trained: its logits are not finite: its weights are damaged, or do"):
        load(folder)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_named(tmp_path, damage):
    folder = small_llama(tmp_path / "base")
    (folder / damage).write_text("{")
    with pytest.raises(RunFailed, match=r"the model file://.* cannot be trained: ."):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"dtype": "floaty"},
        {"hidden_act": "nope"},
        {"vocab_size": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_configuration_that_makes_no_model_is_named(tmp_path, change):
    folder = small_llama(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(RunFailed, match=r"the model file://.* cannot be trained: ."):
        load(folder)


def test_a_pickled_model_is_not_read(tmp_path):
    folder = small_llama(tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunFailed, match="cannot be trained"):
        load(folder)


def test_a_gpu_that_is_not_there_is_missed():
    assert choose_device(0) == torch.device("cpu")
    if torch.cuda.is_available():
        assert choose_device(1).type == "cuda"
    else:
        with pytest.raises(RunFailed, match="gpusPerNode is 1 but the pod sees 0 GPUs that do bf16"):
            choose_device(1)


def test_a_published_adapter_brings_its_own_tokenizer(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    adapter.mkdir()
    assert start_folders(base).tokenizer == base
    assert start_folders(base, adapter).tokenizer == base, "an adapter of PEFT alone has none"
    (adapter / "tokenizer.json").write_text("{}")
    assert start_folders(base, adapter).tokenizer == adapter


def test_a_configuration_may_lack_some_of_its_parts(tmp_path):
    text = {
        **{"vocab_size": 320, "vocab_size_per_layer_input": 320, "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        **{"global_head_dim": 8, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
        **{"layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 512},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    config = Gemma4Config(text_config=text)
    assert config.audio_config is None
    Gemma4ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert load_base(tmp_path, "file://gemma4", torch.float32, torch.device("cpu")).dropouts == {}
