"""Merged weights are the base with its adapter, measured; what is lost on the way is caught."""

from __future__ import annotations

import math
import os
import signal
import time
from threading import Event

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from finetune_api.failures import FailureCode
from finetune_api.trainer import Stage
from finetune_trainer.failures import RunFailed
from finetune_trainer.out.merge import Merger
from finetune_trainer.out.progress import Reporter
from finetune_trainer.out.publish import Publisher
from finetune_trainer.prepare import prepare
from finetune_trainer.run import merging as merging_module
from finetune_trainer.run.merging import Merging, lossy, problem_of
from finetune_trainer.run.train import train
from finetune_trainer.step.likeness import Likeness, likeness
from finetune_trainer.step.stored import stored_layers
from tiny import save_tokenizer
from training import disturb, load, lora, preference_rows, start_folders, trainer_config, write_jsonl

ROWS = tuple(torch.randint(1, 60, (12,), generator=torch.Generator().manual_seed(n)) for n in range(3))
"""Token ids of probe rows."""


def llama(folder, dtype=torch.float32, *, shard="10GB", **config):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **config))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)
    return folder


def trained(base, folder, scale=0.05, **changes):
    """A policy whose adapter has moved, the merging of it, and its logits on the probe rows."""
    policy = load(base, lora=lora(**changes))
    disturb(policy, scale)
    policy.training(False)
    adapter = folder / "adapter"
    adapter.mkdir()
    policy.saving()(adapter)
    merging = Merging(start_folders(base), adapter, stored_layers(policy.root, base), ROWS, torch.device("cpu"))
    return policy, merging


@torch.no_grad()
def logits(model):
    return torch.stack([model(input_ids=row[None]).logits[0].float() for row in ROWS])


def merged_by(merging, folder):
    folder.mkdir()
    return merging.save(folder), folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_merged_weights_in_plain_transformers_are_the_policy(tmp_path, tied, shard):
    base = llama(tmp_path / "base", shard=shard, tie_word_embeddings=tied)
    policy, merging = trained(base, tmp_path)
    error, merged = merged_by(merging, tmp_path / "merged")
    assert error < 1e-4
    assert (len(list(merged.glob("*.safetensors"))) > 1) is (shard == "20KB")
    plain = AutoModelForCausalLM.from_pretrained(merged)
    ours, theirs, before = logits(policy.root), logits(plain), logits(AutoModelForCausalLM.from_pretrained(base))
    assert (ours - before).abs().max() > 0.05
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), merging.adapter).eval()
    torch.testing.assert_close(logits(adapted), ours, rtol=0, atol=1e-5)
    names = [{n for f in x.glob("*.safetensors") for n in load_file(f)} for x in (base, merged)]
    assert names[0] == names[1], "a tied head is there once, as in the base"


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2))


def mixtral():
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4))


@pytest.mark.parametrize("make", [gpt2, mixtral])
def test_transposed_layers_and_renamed_files_merge_too(tmp_path, make):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    policy, merging = trained(tmp_path / "base", tmp_path)
    error, merged = merged_by(merging, tmp_path / "merged")
    assert error < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits(plain), logits(policy.root), rtol=0, atol=1e-5)


def test_the_measure_is_the_norm_of_logits_over_that_of_what_was_learned(tmp_path):
    base = llama(tmp_path / "base", torch.bfloat16)
    _, merging = trained(base, tmp_path)
    error, merged = merged_by(merging, tmp_path / "merged")

    def in_fp32(folder, adapter=None):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return logits(PeftModel.from_pretrained(model, adapter).eval() if adapter else model)

    adapted = in_fp32(base, merging.adapter)
    expected = (in_fp32(merged) - adapted).norm() / (adapted - in_fp32(base)).norm()
    assert 1e-3 < expected < 0.2
    assert error == pytest.approx(expected.item(), rel=1e-3)
    assert load_file(merged / "model.safetensors")["lm_head.weight"].dtype is torch.bfloat16


def test_an_adapter_too_weak_for_the_precision_of_the_base_is_warned_of(tmp_path):
    base = llama(tmp_path / "base", torch.bfloat16)
    _, merging = trained(base, tmp_path, scale=3e-4)
    error, _ = merged_by(merging, tmp_path / "merged")
    code, message = lossy(error)
    assert (code, message.startswith(f"mergeError is {error:.2g}: ")) == ("MergeLossy", True)
    assert lossy(0.2) is None


def test_an_adapter_that_learned_nothing_is_merged_without_error(tmp_path):
    base = llama(tmp_path / "base")
    _, merging = trained(base, tmp_path, scale=0.0)
    error, merged = merged_by(merging, tmp_path / "merged")
    assert error == 0
    file = "model.safetensors"
    assert (merged / file).read_bytes() == (base / file).read_bytes()


@pytest.mark.parametrize("lost", ["all", "one"])
def test_an_adapter_that_is_lost_in_the_merge_is_caught(tmp_path, monkeypatch, lost):
    """As if a tensor of the base were left as it was: the names all fit, only the measure can tell."""
    base = llama(tmp_path / "base")
    _, merging = trained(base, tmp_path)
    write = Merger.write

    def forgetful(self, target):
        write(self, target)
        before, after = load_file(base / "model.safetensors"), load_file(target / "model.safetensors")
        kept = (
            before
            if lost == "all"
            else {"model.layers.1.mlp.down_proj.weight": before["model.layers.1.mlp.down_proj.weight"]}
        )
        save_file(after | kept, target / "model.safetensors", metadata={"format": "pt"})
        return True

    monkeypatch.setattr(Merger, "write", forgetful)
    with pytest.raises(RunFailed, match=r"at most 0\.001 is right for weights in fp32") as caught:
        merged_by(merging, tmp_path / "merged")
    assert caught.value.failure.code is FailureCode.MERGE_FAILED
    measured = likeness(merging.start, merging.adapter, tmp_path / "merged", ROWS, torch.device("cpu"))
    assert measured.merge_error == pytest.approx(1, abs=1e-6) if lost == "all" else measured.merge_error > 0.05


def test_merged_weights_that_do_not_load_are_not_published(tmp_path, monkeypatch):
    _, merging = trained(llama(tmp_path / "base"), tmp_path)
    write = Merger.write

    def truncating(self, target):
        whole = write(self, target)
        file = target / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        return whole

    monkeypatch.setattr(Merger, "write", truncating)
    with pytest.raises(RunFailed, match=r"it could not be merged into org/tiny: the model .* cannot be trained"):
        merged_by(merging, tmp_path / "merged")


@pytest.mark.parametrize(
    ("measured", "whole", "problem"),
    [
        (Likeness(1e-3, 1.0, 10.0), True, None),
        (Likeness(2e-3, 1.0, 10.0), True, "mergeError is 0.002, at most 0.001"),
        (Likeness(2e-3, 1.0, 100.0), True, None),
        (Likeness(0.9, 1.0, 10.0), False, None),
        (Likeness(0.0, 0.0, 10.0), True, None),
        (Likeness(1.0, 0.0, 10.0), False, "have changed although the adapter changes none"),
        (Likeness(math.nan, 1.0, 10.0), False, "its logits are not finite"),
        (Likeness(1.0, math.nan, 10.0), True, "its logits are not finite"),
    ],
)
def test_what_may_be_published(measured, whole, problem):
    found = problem_of(measured, whole)
    assert found is None if problem is None else problem in found


def test_the_probes_are_the_ends_of_rows(monkeypatch):
    class Row:
        tokens = torch.arange(100).numpy()

    assert merging_module._probe([Row()], 0).tolist() == list(range(36, 100))


@pytest.fixture
def config(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(6))
    changes = {"merge": True, "checkpointing": {"nCheckpoints": 2, "recoveryPeriodSeconds": 0}}
    config = trainer_config(tiny_model, tmp_path, **changes)
    return config


def ready(config, folder):
    """The job into `folder`, prepared."""
    config = config.model_copy(update={"output_uri": f"file://{folder}"})
    prepare(config, lambda **_fields: None)
    return config


def run(config):
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    train(config, reporter, Event())
    return reporter.report


def told(report):
    """The checkpoints without what depends on place and clock."""
    return [c.model_copy(update={"time": "", "uri": c.uri.rsplit("/", 1)[-1]}) for c in report.checkpoints]


def test_a_job_with_merge_publishes_both_and_says_how_well_it_merged(config, tmp_path, tiny_model):
    report = run(ready(config, tmp_path / "out"))
    assert [(c.name, c.type, c.uri.removeprefix(f"file://{tmp_path}/out/")) for c in report.checkpoints] == [
        ("dpo:2", "Intermediate", "checkpoints/step-2"),
        ("dpo:4", "Final", "checkpoints/step-4"),
        ("dpo:4", "FinalMerged", "merged"),
    ]
    assert report.checkpoints[-1].metrics["mergeError"] < 1e-3
    assert "mergeError" not in report.checkpoints[1].metrics
    assert report.output.merged_uri == report.checkpoints[-1].uri
    assert report.output.adapter_uri == f"file://{tmp_path}/out/adapter"
    merged = tmp_path / "out" / "merged"
    assert (
        AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    )
    line = torch.arange(20)[None]
    plain = AutoModelForCausalLM.from_pretrained(merged)(input_ids=line).logits
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()(input_ids=line).logits
    torch.testing.assert_close(plain, adapted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("moment", ["while it is measured", "before the last word"])
def test_killed_in_the_merge_a_run_ends_as_if_it_never_was(config, tmp_path, monkeypatch, moment):
    whole = run(ready(config, tmp_path / "whole"))
    config = ready(config, tmp_path / "out")
    measuring = moment == "while it is measured"
    sleeper = (merging_module, "likeness") if measuring else (Publisher, "conclude")
    sign = tmp_path / "out" / (".merged.tmp/config.json" if measuring else "merged")
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(*sleeper, lambda *_arguments: time.sleep(600))
        run(config)
        os._exit(1)
    while not sign.exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert told(run(config)) == told(whole)
    for name in ("merged", "adapter"):
        files = {p.name: p.read_bytes() for p in (tmp_path / "out" / name).glob("*.safetensors")}
        assert files == {p.name: p.read_bytes() for p in (tmp_path / "whole" / name).glob("*.safetensors")}
    assert not list((tmp_path / "out").glob(".merged*"))


def test_a_merge_that_is_wrong_leaves_the_adapter_and_its_checkpoints(config, tmp_path, monkeypatch):
    config = ready(config, tmp_path / "out")
    monkeypatch.setattr(merging_module, "likeness", lambda *_arguments: Likeness(1.0, 1.0, 10.0))
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    with pytest.raises(RunFailed, match="the adapter is published, but it could not be merged") as caught:
        train(config, reporter, Event())
    assert caught.value.failure.exit_code == 22
    assert [c.type for c in reporter.report.checkpoints] == ["Intermediate", "Final"]
    assert not list((tmp_path / "out").glob("*merged*"))
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    monkeypatch.undo()
    assert [c.type for c in run(config).checkpoints] == ["Intermediate", "Final", "FinalMerged"], "another attempt"
