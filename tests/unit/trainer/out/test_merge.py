"""Merged files: the base's own bytes but for the adapted tensors, which are W + scale * B @ A, cast once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_trainer.failures import RunFailed
from finetune_trainer.out import merge as merge_module
from finetune_trainer.out.merge import Merger

RANK, ALPHA = 3, 12.0
GENERATOR = torch.Generator().manual_seed(3)


@dataclass
class Layer:
    tensor: str
    transposed: bool = False


LAYERS = {"layers.0.q": Layer("layers.0.q.weight"), "layers.1.q": Layer("old.1.q.weight", transposed=True)}


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=GENERATOR).to(dtype)


def make(folder, dtype=torch.float32, **changes):
    """A base in two shards and an adapter on two of its layers of [5, 7]; `changes` are tensors of the base."""
    base, adapter, merged = (folder / name for name in ("base", "adapter", "merged"))
    for each in (base, adapter, merged):
        each.mkdir()
    first = {"layers.0.q.weight": random(5, 7, dtype=dtype), "norm.weight": random(7, dtype=torch.float32)}
    second = {"old.1.q.weight": random(7, 5, dtype=dtype), "embed.weight": random(9, 7, dtype=dtype)}
    shards = {"model-1.safetensors": first | changes, "model-2.safetensors": second}
    for name, tensors in shards.items():
        save_file(tensors, base / name, metadata={"format": "pt"})
    index = {"weight_map": {tensor: name for name, tensors in shards.items() for tensor in tensors}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "config.json").write_text('{"model_type": "x"}')
    write_adapter(adapter, {path: (random(RANK, 7), random(5, RANK)) for path in LAYERS})
    return Merger(base, "org/base", adapter, LAYERS), merged


def write_adapter(folder, parts, **config):
    tensors = {}
    for path, (a, b) in parts.items():
        tensors |= {f"base_model.model.{path}.lora_{side}.weight": t for side, t in (("A", a), ("B", b))}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA, **config}))


def all_of(folder):
    return {name: t for file in sorted(folder.glob("model*.safetensors")) for name, t in load_file(file).items()}


def addend(merger, path, scale=ALPHA / RANK):
    tensors = load_file(merger.adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
    return scale * (b @ a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_adapted_tensors_are_the_fp32_sum_cast_once_and_all_else_is_untouched(tmp_path, dtype):
    merger, merged = make(tmp_path, dtype)
    assert merger.write(merged) is (dtype in (torch.float32, torch.float64))
    before, after = all_of(merger.base), all_of(merged)
    compute = torch.promote_types(dtype, torch.float32)
    expected = before | {
        "layers.0.q.weight": (before["layers.0.q.weight"].to(compute) + addend(merger, "layers.0.q")).to(dtype),
        "old.1.q.weight": (before["old.1.q.weight"].to(compute) + addend(merger, "layers.1.q").T).to(dtype),
    }
    assert before.keys() == after.keys()
    for name, tensor in expected.items():
        tolerance = 0 if dtype is not torch.float64 else 1e-6
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=tolerance)
        assert torch.equal(after[name], before[name]) is (name in ("norm.weight", "embed.weight"))
    for name in ("config.json", "model.safetensors.index.json"):
        assert (merged / name).read_bytes() == (merger.base / name).read_bytes()
    sizes = [[p.stat().st_size for p in sorted(f.glob("*.safetensors"))] for f in (merger.base, merged)]
    assert sizes[0] == sizes[1]


def test_one_file_is_enough(tmp_path):
    merger, merged = make(tmp_path)
    save_file(all_of(merger.base), merger.base / "model.safetensors", metadata={"format": "pt"})
    merger.write(merged)
    assert sorted(p.name for p in merged.glob("*.safetensors")) == ["model.safetensors"]


def test_blocks_of_rows_give_the_same_bytes(tmp_path, monkeypatch):
    merger, merged = make(tmp_path, torch.bfloat16)
    merger.write(merged)
    whole = all_of(merged)
    monkeypatch.setattr(merge_module, "BLOCK_ELEMENTS", 14)
    merger.write(merged)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in all_of(merged).items())


def test_a_rank_stabilised_adapter_has_its_own_scale(tmp_path):
    merger, merged = make(tmp_path)
    config = merger.adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    merger.write(merged)
    name = "layers.0.q.weight"
    expected = all_of(merger.base)[name] + addend(merger, "layers.0.q", ALPHA / math.sqrt(RANK))
    torch.testing.assert_close(all_of(merged)[name], expected)


def adapter_without(merger, path):
    parts = {name: (random(RANK, 7), random(5, RANK)) for name in LAYERS if name != path}
    write_adapter(merger.adapter, parts)


def adapter_with(merger, path):
    write_adapter(merger.adapter, {name: (random(RANK, 7), random(5, RANK)) for name in (*LAYERS, path)})


def adapter_not_finite(merger):
    write_adapter(merger.adapter, {name: (random(RANK, 7), random(5, RANK) * math.inf) for name in LAYERS})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: adapter_without(m, "layers.1.q"), "the adapter has no tensors for the layer layers.1.q"),
        (lambda m: adapter_with(m, "layers.2.q"), r"is meant by the adapter's tensor .*layers.2.q.lora_A.weight"),
        (adapter_not_finite, "layers.0.q.weight is not finite after merging"),
    ],
)
def test_an_adapter_that_would_be_lost_is_refused(tmp_path, spoil, words):
    merger, merged = make(tmp_path)
    spoil(merger)
    with pytest.raises(RunFailed, match=words) as caught:
        merger.write(merged)
    assert caught.value.failure.exit_code == 22
    assert "the adapter is published, but it could not be merged into org/base" in caught.value.failure.sentence


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"layers.0.q.weight": random(7, 5)}, r"has the shape \[7, 5\], its adapter is for \[5, 7\]"),
        ({"layers.0.q.weight": torch.ones(5, 7).to(torch.float8_e4m3fn)}, "has the precision F8_E4M3"),
        ({"layers.0.q.weight": torch.full((5, 7), 65504.0, dtype=torch.float16)}, "is not finite after merging"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(tmp_path, stored, words):
    merger, merged = make(tmp_path, **stored)
    if "finite" in words:
        parts = {name: (torch.full((RANK, 7), 10.0), torch.full((5, RANK), 10.0)) for name in LAYERS}
        write_adapter(merger.adapter, parts)
    with pytest.raises(RunFailed, match=words):
        merger.write(merged)


def test_a_name_that_the_files_do_not_have_is_refused(tmp_path):
    merger, merged = make(tmp_path)
    elsewhere = LAYERS | {"layers.1.q": Layer("layers.1.q.weight", transposed=True)}
    with pytest.raises(RunFailed, match=r"its files have no tensor layers.1.q.weight"):
        Merger(merger.base, "org/base", merger.adapter, elsewhere).write(merged)
