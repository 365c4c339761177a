"""Starting weights and what is trained on them, saved so that plain transformers and peft read them."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune_trainer.failures import RunFailed
from finetune_trainer.step.model import choose_device, linear_layers
from training import disturb, load, lora

LINES = torch.randint(10, 300, (3, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=LINES, use_cache=False).logits


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


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
    with pytest.raises(RunFailed, match="names lm_head"):
        load(tiny_model, lora=lora(trainable_modules=("lm_head",)))


def test_only_named_modules_are_adapted(tiny_model):
    policy = load(tiny_model, lora=lora(trainable_modules=("v_proj", "q_proj")))
    assert len(policy.trainable) == 2 * 2 * 2


def test_a_saved_adapter_loads_with_plain_peft(tiny_model, tmp_path):
    policy = load(tiny_model, lora=lora())
    disturb(policy)
    policy.save(tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("org/tiny", "main")
    assert (described["r"], described["lora_alpha"], described["task_type"]) == (4, 8.0, "CAUSAL_LM")
    assert torch.equal(logits(PeftModel.from_pretrained(plain(tiny_model), tmp_path)), logits(policy.root))


def test_saving_twice_gives_the_same_bytes(tiny_model, tmp_path):
    policy = load(tiny_model, lora=lora())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        policy.save(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.fixture
def adapter(tiny_model, tmp_path):
    policy = load(tiny_model, lora=lora())
    disturb(policy)
    folder = tmp_path / "adapter"
    folder.mkdir()
    policy.save(folder)
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


def test_saved_full_weights_load_with_plain_transformers(tiny_model, tmp_path):
    policy = load(tiny_model)
    disturb(policy)
    policy.save(tmp_path)
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
    policy.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["attention_dropout"] == 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_full_weights_are_trained_in_fp32_and_published_in_the_precision_of_the_base(tmp_path, tied):
    policy = load(small_llama(tmp_path / "base", torch.bfloat16, tie_word_embeddings=tied))
    assert {p.dtype for p in policy.trainable.values()} == {torch.float32}
    (tmp_path / "saved").mkdir()
    policy.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == load_file(tmp_path / "base" / "model.safetensors").keys(), "a tied head is kept once"
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    folder = small_llama(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match=r"1 weights are missing .* model.norm.weight"):
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


def test_linear_layers_leave_out_the_head(tiny_model):
    assert not [path for path in linear_layers(plain(tiny_model)) if "head" in path]


def test_a_gpu_that_is_not_there_is_missed():
    assert choose_device(0) == torch.device("cpu")
    if torch.cuda.is_available():
        assert choose_device(1).type == "cuda"
    else:
        with pytest.raises(RunFailed, match="gpusPerNode is 1 but the pod sees 0 GPUs that do bf16"):
            choose_device(1)
