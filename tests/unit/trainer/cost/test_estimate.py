"""What a job will take, and which job is refused before it asks for a GPU."""

from dataclasses import replace

import numpy as np
import pytest

from configs import trainer_config
from finetune_api.failures import FailureCode as Code
from finetune_api.trainer import ExitCode
from finetune_trainer.cost.estimate import GIB, MARGIN, Job, estimate, misfit
from finetune_trainer.cost.load import Rows
from finetune_trainer.data.shape import shape_of

QWEN3_8B = {"hidden": 4096, "feed": 12288, "layers": 36, "queries": 4096, "keys": 1024, "words": 151936}


def shape(*, hidden, feed, layers, queries, keys, words):
    """A Qwen3 of these widths, as its files describe it."""
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (feed, hidden),
        "mlp.up_proj": (feed, hidden),
        "mlp.down_proj": (hidden, feed),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_norm": (128,),
        "self_attn.k_norm": (128,),
    }
    tensors = {f"model.layers.{i}.{name}.weight": size for i in range(layers) for name, size in layer.items()}
    tensors |= {"model.embed_tokens.weight": (words, hidden), "lm_head.weight": (words, hidden)}
    heads = {"num_attention_heads": queries // 128, "num_key_value_heads": keys // 128, "head_dim": 128}
    return shape_of({"hidden_act": "silu", **heads}, tensors | {"model.norm.weight": (hidden,)})


def job(*, pairs=((7168, 1024, 1000), (100, 20, 30)), validation=0, model=QWEN3_8B, **fields):
    prompts, firsts, seconds = np.array(pairs).T
    rows = Rows(prompts, firsts, seconds, firsts + seconds, np.arange(11, 11 + len(pairs)))
    return Job(trainer_config(**{"gpus": 1, **fields}), rows, validation, model and shape(**model))


FULL = {"training_kind": "Full", "lora": None}


def test_tokens_are_those_of_all_epochs_and_evaluations_and_have_a_price():
    asked = job(
        validation=1000,
        hyperparameters={"nEpochs": 3},
        evaluation={"nEvals": 4},
        price_per_million_tokens=0.5,
        model=None,
    )
    told = estimate(asked)
    assert (told.train_tokens, told.eval_tokens) == (3 * (9192 + 150), 4000)
    assert told.price == pytest.approx((28026 + 4000) / 1e6 * 0.5)
    assert told.to_json().keys() == {"trainTokens", "evalTokens", "price"}, "of an unknown model nothing else is told"


def test_no_price_is_told_where_none_is_asked_for():
    assert estimate(job()).price is None


def test_a_free_model_has_a_price_of_nought():
    assert estimate(job(price_per_million_tokens=0)).price == 0


def test_memory_of_an_eight_billion_model():
    lora, full = estimate(job()), estimate(job(**FULL))
    assert lora.memory.weights == pytest.approx(2 * 8.19e9, rel=0.01)
    assert 17 * GIB < lora.gpu_memory_bytes < 26 * GIB
    assert 50 * GIB < lora.fast_gpu_memory_bytes < 141 * GIB
    assert full.gpu_memory_bytes == pytest.approx(18 * 8.19e9, rel=0.1)
    assert sum(lora.memory.to_json().values()) == lora.gpu_memory_bytes


def test_operations_are_those_of_training_and_of_the_reference():
    simpo = {"type": "DPO", "dpo": {"simpoGamma": 1.0, "beta": 2.0}}
    dpo, free = (estimate(job(training_method=method)).train_petaflop for method in ({"type": "DPO"}, simpo))
    twice = estimate(job(training_method=simpo, hyperparameters={"nEpochs": 2})).train_petaflop
    assert twice == pytest.approx(2 * free)
    assert 1.3 < dpo / free < 1.5
    assert free == pytest.approx(4 * 7.5e9 * 9342 / 1e15, rel=0.5)


def test_on_a_cpu_memory_is_that_of_the_pod():
    told = estimate(job(gpus=0, gpu_memory_bytes=1))
    assert told.memory.weights > 4 * 8.19e9
    assert told.memory.overhead == 0
    assert told.gpu_memory_bytes is told.fast_gpu_memory_bytes is told.fits is None
    assert misfit(job(gpus=0, gpu_memory_bytes=1)) is None


def test_without_packing_a_cpu_computes_one_row_at_a_time():
    rows = [(100, 20, 20)] * 30
    packed, alone = (
        estimate(job(pairs=rows, gpus=0, batch_size=30, hyperparameters={"packing": packing})).memory.activations
        for packing in (True, False)
    )
    assert packed > 20 * alone


def test_what_fits_is_not_refused():
    asked = job(gpu_memory_bytes=141 * GIB)
    assert estimate(asked).fits is True
    assert misfit(asked) is None


def test_what_is_too_close_to_tell_is_tried():
    least = estimate(job()).gpu_memory_bytes
    close = job(gpu_memory_bytes=int(least / 1.05))
    assert estimate(close).fits is None
    assert misfit(close) is None


@pytest.mark.parametrize("asked", [job(model=None, gpu_memory_bytes=1), job()], ids=["model", "memory"])
def test_what_is_not_known_is_not_refused(asked):
    assert estimate(asked).fits is None
    assert misfit(asked) is None


def failure_of(asked):
    assert estimate(asked).fits is False
    ended = misfit(asked)
    assert ended is not None
    assert ended.failure.exit_code is ExitCode.OUT_OF_MEMORY
    assert "{" not in ended.failure.sentence
    return ended.failure


def test_a_row_that_cannot_fit_is_named_with_the_length_that_does():
    asked = job(pairs=[(100, 20, 30), (60000, 1024, 1000)], gpu_memory_bytes=24 * GIB)
    failure = failure_of(asked)
    assert failure.code is Code.GPU_SMALL_FOR_ROW
    assert (failure.args["line"], failure.args["tokens"]) == ("12", "61024")
    fits = int(failure.args["fits"])
    shorter = replace(asked, rows=job(pairs=[(fits - 1024, 1024, 1000)]).rows)
    longer = replace(asked, rows=job(pairs=[(2 * fits, 1024, 1000)]).rows)
    assert estimate(shorter).fits is True
    assert estimate(longer).fits is not True


def test_full_training_that_cannot_fit_is_told_what_lora_needs():
    failure = failure_of(job(**FULL, gpu_memory_bytes=80 * GIB))
    assert failure.code is Code.GPU_SMALL_FOR_FULL
    assert float(failure.args["lora"]) < 30 < 80 < float(failure.args["needed"])
    assert "80.0 GiB (gpuMemory)" in failure.sentence
    given, enough = int(failure.args["given"]), int(failure.args["gpus"])
    assert (given, enough) == (1, 2)
    assert estimate(job(**FULL | {"nodes": enough}, gpu_memory_bytes=80 * GIB)).fits is True


def test_frozen_weights_are_spread_where_they_would_take_most_of_a_gpu():
    alone, spread = (estimate(job(nodes=nodes, gpu_memory_bytes=24 * GIB)).memory.weights for nodes in (1, 4))
    assert spread < alone / 3
    roomy = estimate(job(nodes=4, gpu_memory_bytes=80 * GIB)).memory.weights
    assert roomy == alone, "else each process has the whole"


def test_a_model_that_cannot_fit_is_said_to_be_too_large():
    assert failure_of(job(gpu_memory_bytes=12 * GIB)).code is Code.GPU_SMALL_FOR_MODEL


def test_the_refusal_leaves_room_for_error_and_for_what_libraries_take():
    told = estimate(job())
    border = (told.gpu_memory_bytes - told.memory.overhead) / MARGIN
    assert misfit(job(gpu_memory_bytes=int(border) + 1)) is None
    assert misfit(job(gpu_memory_bytes=int(border) - 1)) is not None
