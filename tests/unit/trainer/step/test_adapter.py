"""Adapters: on the layers that are meant, taken up where they were, and refused where they are more than LoRA."""

from __future__ import annotations

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from finetune_trainer.failures import RunFailed
from finetune_trainer.step.adapter import adapted_layers, linear_layers, new_adapter
from training import disturb, load, lora, start_folders

LINES = torch.randint(10, 300, (3, 12), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=LINES, use_cache=False).logits


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_linear_layers_leave_out_the_head(tiny_model):
    assert not [path for path in linear_layers(plain(tiny_model)) if "head" in path]


def test_a_new_adapter_is_on_every_linear_layer_but_the_head_and_changes_nothing(tiny_model):
    policy = load(tiny_model, lora=lora())
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in policy.trainable}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert torch.equal(logits(policy.root), logits(plain(tiny_model)))
    assert all(p.dtype is torch.float32 and "lora_" in name for name, p in policy.trainable.items())


def test_the_seed_decides_the_new_adapter(tiny_model):
    def weights(seed):
        return torch.cat([p.flatten() for p in load(tiny_model, lora=lora(), seed=seed).trainable.values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_modules_that_the_model_lacks_are_named_with_those_it_has(tiny_model):
    with pytest.raises(RunFailed, match=r"names c_attn, .* its linear layers are down_proj, gate_proj, k_proj"):
        load(tiny_model, lora=lora(trainable_modules=("q_proj", "c_attn")))


def test_an_adapter_on_the_head_is_refused(tiny_model):
    with pytest.raises(RunFailed, match=r"names lm_head, the model's head, .* choose from down_proj, gate_proj"):
        load(tiny_model, lora=lora(trainable_modules=("q_proj", "lm_head")))


def test_only_named_modules_are_adapted(tiny_model):
    policy = load(tiny_model, lora=lora(trainable_modules=("v_proj", "q_proj")))
    assert len(policy.trainable) == 2 * 2 * 2


def test_a_saved_adapter_loads_with_plain_peft(tiny_model, tmp_path):
    policy = load(tiny_model, lora=lora())
    disturb(policy)
    policy.saving()(tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("org/tiny", "main")
    assert (described["r"], described["lora_alpha"], described["task_type"]) == (4, 8.0, "CAUSAL_LM")
    assert torch.equal(logits(PeftModel.from_pretrained(plain(tiny_model), tmp_path)), logits(policy.root))


def test_saving_twice_gives_the_same_bytes(tiny_model, tmp_path):
    policy = load(tiny_model, lora=lora())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        policy.saving()(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def adapter(tiny_model, tmp_path):
    policy = load(tiny_model, lora=lora())
    disturb(policy)
    folder = tmp_path / "adapter"
    folder.mkdir()
    policy.saving()(folder)
    return folder


def test_a_continued_adapter_goes_on_where_it_was_with_the_new_dropout(tiny_model, adapter):
    policy = load(tiny_model, lora=lora(dropout=0.25), adapter=adapter)
    policy.training(False)
    assert torch.equal(logits(policy.root), logits(PeftModel.from_pretrained(plain(tiny_model), adapter)))
    assert all(p.requires_grad for p in policy.trainable.values())
    assert len(policy.trainable) == 2 * 7 * 2
    assert {m.p for m in policy.root.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def test_full_training_on_an_adapter_starts_from_the_merged_weights(tiny_model, adapter):
    policy = load(tiny_model, adapter=adapter)
    adapted = logits(PeftModel.from_pretrained(plain(tiny_model), adapter))
    assert (logits(policy.root) - adapted).abs().max() < 1e-4
    assert (logits(plain(tiny_model)) - adapted).abs().max() > 1e-2
    assert not any("lora" in name for name in policy.trainable)
    assert policy.trainable.keys() == dict(plain(tiny_model).named_parameters()).keys()


def test_a_pickled_adapter_is_not_read(tiny_model, adapter):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").rename(adapter / "model.safetensors")
    for shape in (lora(), None):
        with pytest.raises(RunFailed, match="does not exist any more"):
            load(tiny_model, lora=shape, adapter=adapter)


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))


def qwen3_moe():
    sizes = {**SIZES, "moe_intermediate_size": 8, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, mlp_only_layers=[0]))


def deepseek():
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(**SIZES, **latent, **experts, moe_intermediate_size=8, first_k_dense_replace=1)
    )


def llama4():
    return Llama4ForCausalLM(Llama4TextConfig(**SIZES, intermediate_size_mlp=16, num_local_experts=4, head_dim=8))


def gpt2():
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (mixtral, ATTENTION),
        (qwen3_moe, ATTENTION),
        (deepseek, {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
        (llama4, {*ATTENTION, "gate_proj", "up_proj", "down_proj"}),
        (gpt2, {"c_attn", "c_fc", "c_proj"}),
    ],
)
def test_all_linear_leaves_out_routers_and_what_peft_takes_for_experts(tmp_path, make, names):
    model = new_adapter(make(), start_folders(tmp_path), lora(), seed=7)
    assert {path.rsplit(".", 1)[-1] for path in adapted_layers(model)} == names
    assert not model.peft_config["default"].target_parameters
    assert all(".experts." not in name for name, p in model.named_parameters() if p.requires_grad)


def test_layers_that_peft_takes_for_experts_are_refused_by_name(tmp_path):
    for name in ("down_proj", "gate_proj"):
        with pytest.raises(RunFailed, match=f"names {name}, which stands for fused experts"):
            new_adapter(qwen3_moe(), start_folders(tmp_path), lora(trainable_modules=(name,)), seed=7)


def test_a_head_that_is_called_like_a_layer_gets_no_adapter(tmp_path):
    model = mixtral()
    head = model.lm_head
    del model.lm_head
    model.o_proj = head
    model.set_output_embeddings = lambda new: None
    model.get_output_embeddings = lambda: head
    adapted = adapted_layers(new_adapter(model, start_folders(tmp_path), lora(), seed=7))
    assert "o_proj" not in adapted
    assert len(adapted) == 2 * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_rslora": True}, "it uses use_rslora, which this version does not train"),
        ({"use_dora": True}, "it uses use_dora"),
        ({"bias": "lora_only"}, "it uses bias"),
        ({"rank_pattern": {"q_proj": 2}, "modules_to_save": ["norm"]}, "it uses rank_pattern, modules_to_save"),
        ({"target_modules": ".*_proj"}, r"its target_modules is the expression \.\*_proj"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(tiny_model, adapter, change, words):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for shape in (lora(), None):
        with pytest.raises(RunFailed, match=f"cannot be continued: {words}"):
            load(tiny_model, lora=shape, adapter=adapter)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]).to_dict(), "it is no LoRA adapter but"),
        ({"peft_type": "NEVER_HEARD_OF"}, "its adapter_config.json is missing or damaged"),
        (None, "its adapter_config.json is missing or damaged"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tiny_model, adapter, config, words):
    path = adapter / "adapter_config.json"
    path.unlink()
    if config is not None:
        path.write_text(json.dumps({k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}))
    with pytest.raises(RunFailed, match=f"cannot be continued: {words}"):
        load(tiny_model, lora=lora(), adapter=adapter)


@pytest.mark.parametrize("damage", ["less", "more", "shape"])
def test_an_adapter_that_does_not_fit_its_base_is_refused_and_never_used_in_part(tiny_model, adapter, damage):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = min(weights)
    if damage == "less":
        del weights[name]
    elif damage == "more":
        weights[name.replace("layers.0", "layers.9")] = weights[name].clone()
    else:
        weights[name] = torch.zeros(3, 3)
    save_file(weights, file, metadata={"format": "pt"})
    for shape in (lora(), None):
        with pytest.raises(RunFailed, match="it does not fit the base model"):
            load(tiny_model, lora=shape, adapter=adapter)


def test_an_adapter_of_peft_itself_is_continued(tiny_model, tmp_path):
    theirs = get_peft_model(plain(tiny_model), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    theirs.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tiny_model, lora=lora(), adapter=tmp_path).root), logits(theirs))
