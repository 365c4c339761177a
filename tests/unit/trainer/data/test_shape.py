"""A model's dimensions from what its files say: of each architecture that is known, and of none that is not."""

import pytest

from architectures import CONFIGURATIONS, build
from finetune_trainer.data.shape import shape_of
from shapes import read_shape

UNKNOWN = {"gemma2", "gpt-oss", "llama4", "qwen3-next", "minimax-m3", "bloom"}
LAYER = {
    "self_attn.q_proj.weight": (8, 8),
    "self_attn.k_proj.weight": (4, 8),
    "self_attn.v_proj.weight": (4, 8),
    "self_attn.o_proj.weight": (8, 8),
    "mlp.gate_proj.weight": (12, 8),
    "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12),
    "input_layernorm.weight": (8,),
    "post_attention_layernorm.weight": (8,),
}
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu"}


def tensors(*layers, **outside):
    inside = {f"model.layers.{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,), **inside, **outside}


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS.keys() - UNKNOWN))
def test_a_known_architecture_has_the_weights_that_torch_counts(name, tmp_path):
    model = build(name)
    shape = read_shape(model, tmp_path)
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.layers, shape.hidden, shape.heads, shape.vocabulary) == (2, 32, 4, 97)


@pytest.mark.parametrize("name", sorted(UNKNOWN))
def test_an_architecture_with_anything_else_in_it_has_no_shape(name, tmp_path):
    assert read_shape(build(name), tmp_path) is None


def test_what_a_layer_is_made_of():
    shape = shape_of(CONFIG, tensors(LAYER, LAYER))
    assert (shape.queries, shape.keys, shape.feed, shape.head_width) == (8, 4, 12, 2)
    assert (shape.gated, shape.fused, shape.rotary, shape.head_norms, shape.tied) == (True, False, True, False, True)
    assert shape.in_layers == 2 * sum(rows[0] * rows[1] for rows in LAYER.values() if len(rows) == 2)


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (CONFIG, {}),
        (CONFIG, tensors()),
        (CONFIG, tensors(LAYER, {**LAYER, "mlp.up_proj.weight": (13, 8)})),
        (CONFIG, tensors({**LAYER, "self_attn.sinks": (4,)})),
        (CONFIG, tensors(LAYER, **{"vision.patch.weight": (3, 3)})),
        (CONFIG | {"hidden_act": "relu2"}, tensors(LAYER)),
        (CONFIG | {"attn_logit_softcapping": 50.0}, tensors(LAYER)),
        (CONFIG | {"quantization_config": {"quant_method": "gptq"}}, tensors(LAYER)),
        (CONFIG | {"num_attention_heads": "many"}, tensors(LAYER)),
        ({}, tensors(LAYER)),
    ],
    ids=str,
)
def test_what_is_not_known_has_no_shape(config, weights):
    assert shape_of(config, weights) is None
