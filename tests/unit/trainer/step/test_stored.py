"""Names in files and names of layers: as they are, renamed, without prefix, and as a part of something else."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.core_model_loading import Chunk, WeightConverter

from finetune_trainer.failures import RunFailed
from finetune_trainer.step import stored
from finetune_trainer.step.stored import stored_layers
from training import load, lora

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 16, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}


def llama():
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, **SPECIAL))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2))


def saved(folder, model, *, without=""):
    """The model on disk, the prefix `without` left out of its names."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix(without): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def found(folder, *modules):
    policy = load(folder, lora=lora(trainable_modules=modules or ("all-linear",)))
    return stored_layers(policy.root, folder)


def test_a_layer_is_found_under_its_own_name(tmp_path):
    layers = found(saved(tmp_path, llama()), "q_proj")
    assert {path: layer.tensor for path, layer in layers.items()} == {
        "model.layers.0.self_attn.q_proj": "model.layers.0.self_attn.q_proj.weight"
    }


@pytest.mark.parametrize(("make", "prefix"), [(llama, "model."), (gpt2, "transformer."), (bloom, "transformer.")])
def test_files_of_the_backbone_alone_lack_the_prefix(tmp_path, make, prefix):
    layers = found(saved(tmp_path, make(), without=prefix))
    assert len(layers) >= 4
    assert all(f"{prefix}{layer.tensor}" == f"{path}.weight" for path, layer in layers.items())
    assert {layer.transposed for layer in layers.values()} == {make is gpt2}


def test_layers_beside_experts_are_found(tmp_path):
    layers = found(saved(tmp_path, mixtral()))
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any("block_sparse_moe" in name for name in names), "transformers renames what is in these files"
    assert {layer.tensor for layer in layers.values()} < names
    assert len(layers) == 4


def test_layers_that_are_parts_of_a_tensor_are_refused_before_training(tmp_path, monkeypatch):
    fused = WeightConverter(
        source_patterns="self_attn.k_proj.weight",
        target_patterns=["self_attn.q_proj.weight", "self_attn.k_proj.weight"],
        operations=[Chunk(dim=0)],
    )
    folder = saved(tmp_path, llama())
    policy = load(folder, lora=lora(trainable_modules=("k_proj",)))
    monkeypatch.setattr(stored, "get_model_conversion_mapping", lambda _model: [fused])
    with pytest.raises(
        RunFailed, match=r"output\.merge: .*self_attn\.k_proj only as a part of another tensor"
    ) as caught:
        stored_layers(policy.root, folder)
    assert caught.value.failure.exit_code == 10


def test_a_layer_that_is_there_twice_is_refused(tmp_path):
    folder = saved(tmp_path, llama())
    policy = load(folder, lora=lora(trainable_modules=("q_proj",)))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(weights | {name.removeprefix("model."): weights[name].clone()}, folder / "model.safetensors")
    with pytest.raises(RunFailed, match=r"hold the weight of .*q_proj in 2 tensors"):
        stored_layers(policy.root, folder)
