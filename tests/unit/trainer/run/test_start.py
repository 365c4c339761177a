"""What a run decides before its first step: that it is decided once, fits into memory, and changes no number."""

from __future__ import annotations

from contextlib import nullcontext
from threading import Event

import pytest
import torch

from finetune_api.trainer import Stage
from finetune_trainer.data.prepared import TRAIN_FOLDER
from finetune_trainer.data.tokens import open_cache
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run import start
from finetune_trainer.run.train import train
from finetune_trainer.step import reference, rehearsal
from finetune_trainer.step.fitting import Fitter
from finetune_trainer.step.recipe import ROW_ALONE, Level, Recipe
from finetune_trainer.step.rehearsal import Rehearsal
from training import limit_memory, metrics_rows, preference_rows, trainer_config, write_jsonl

ROWS, STEPS = 10, 6
"""Two epochs of three steps."""


@pytest.fixture
def config(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(ROWS))
    write_jsonl(tmp_path / "eval.jsonl", preference_rows(3, seed=1))
    return trainer_config(
        tiny_model,
        tmp_path,
        validationFile=f"file://{tmp_path}/eval.jsonl",
        lora={"rank": 4, "alpha": 8, "dropout": 0.3, "trainableModules": ["all-linear"]},
        evaluation={"nEvals": 2},
    )


def beside(config, name, **hyper):
    """The same job with an output of its own, prepared."""
    hyperparameters = config.hyperparameters.model_copy(update=hyper)
    uri = config.output_uri.replace("/out", f"/{name}")
    config = config.model_copy(update={"output_uri": uri, "hyperparameters": hyperparameters})
    prepare(config, lambda **_fields: None)
    return config


class Telling(Reporter):
    """A reporter that remembers what progress it was told, and can stop the run at one of them."""

    def __init__(self, config, stop_at=None):
        super().__init__(config.job, Stage.TRAIN, "pod-1")
        self.displays, self.stopping, self.stop_at = [], Event(), stop_at

    def update(self, **fields):
        super().update(**fields)
        if progress := fields.get("progress"):
            self.displays.append(progress.display)
            if progress.display == self.stop_at:
                self.stopping.set()


def run(config, stop_at=None):
    """Train to the end, or to where it is stopped."""
    reporter = Telling(config, stop_at)
    stops = pytest.raises(RunFailed, match="stopped on request") if stop_at else nullcontext()
    with stops:
        train(config, reporter, reporter.stopping)
    return reporter


def adapter(config):
    return (Layout.of(config).final / "adapter_model.safetensors").read_bytes()


def metrics(config):
    return metrics_rows(Layout.of(config).metrics)


def assert_close(config, other):
    for found, expected in zip(metrics(config), metrics(other), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def warned(reporter):
    return {warning.reason: warning.message for warning in reporter.report.warnings if warning.reason != "FewSteps"}


@pytest.fixture
def policies(monkeypatch):
    """Every policy that is loaded, and what is done to it when it is; the recipes that steps are computed by."""
    real, gradients = start.load_policy, Fitter.gradients

    class Seen:
        loaded, when_loaded, recipes = [], staticmethod(lambda _policy: None), []

    def load(*args):
        policy = real(*args)
        Seen.loaded.append(policy)
        Seen.when_loaded(policy)
        return policy

    def step(fitter, *args):
        sums = gradients(fitter, *args)
        Seen.recipes.append(fitter.recipe)
        return sums

    monkeypatch.setattr(start, "load_policy", load)
    monkeypatch.setattr(Fitter, "gradients", step)
    return Seen


def test_a_rehearsed_run_is_the_run_without_a_rehearsal(config, monkeypatch):
    rehearsed = beside(config, "rehearsed")
    run(rehearsed)
    monkeypatch.setattr(Rehearsal, "fitting", lambda _self, recipe: recipe)
    plain = beside(config, "plain")
    run(plain)
    assert metrics(rehearsed) == metrics(plain)
    assert adapter(rehearsed) == adapter(plain)


def test_without_packing_every_row_is_alone_and_the_result_is_the_same(config, policies):
    config = config.model_copy(update={"lora": config.lora.model_copy(update={"dropout": 0.0})})
    packed, alone = beside(config, "packed"), beside(config, "alone", packing=False)
    longest = int(open_cache(Layout.of(alone).prepared / TRAIN_FOLDER).lengths.max())
    run(packed)
    assert set(policies.recipes) == {Recipe(Level.SHARED, rehearsal.CPU_TOKENS)}
    policies.recipes.clear()
    policies.when_loaded = lambda policy: setattr(policies, "passes", limit_memory(policy, 10_000))
    run(alone)
    assert set(policies.recipes) == {Recipe(Level.SHARED, ROW_ALONE)}
    assert max(policies.passes) == longest
    assert_close(alone, packed)


def test_memory_that_runs_out_in_a_step_gives_the_run_of_smaller_micro_batches(config, policies, monkeypatch):
    """Bit for bit, where nothing is scored before the first step."""
    free = {"type": "DPO", "dpo": {"beta": 0.1, "referenceFree": True}}
    config = type(config).model_validate(config.to_json() | {"trainingMethod": free, "evaluation": {}})
    late, small = beside(config, "late"), beside(config, "small")
    real = Fitter.gradients

    def first_step(fitter, *args):
        monkeypatch.setattr(Fitter, "gradients", real)
        limit_memory(fitter.policy, 300)
        return real(fitter, *args)

    monkeypatch.setattr(Fitter, "gradients", first_step)
    told = run(late)
    (recipe,) = set(policies.recipes)
    assert recipe.max_tokens < 300
    assert [(w.reason, w.step) for w in told.report.warnings if w.reason != "FewSteps"] == [("MicroBatchHalved", 0)]
    assert f"at most {recipe.max_tokens} tokens from now on" in warned(told)["MicroBatchHalved"]
    monkeypatch.setattr(rehearsal, "CPU_TOKENS", recipe.max_tokens)
    assert warned(run(small)) == {}
    assert adapter(late) == adapter(small)
    assert metrics(late) == metrics(small)


def test_the_recipe_is_kept_over_a_restart(config, policies, monkeypatch):
    whole, broken = beside(config, "whole"), beside(config, "broken")
    run(whole)
    assert run(broken, stop_at="2/6").report.recovery.step == 2
    monkeypatch.setattr(rehearsal, "CPU_TOKENS", 64)
    told = run(broken)
    assert told.report.resumed_from_step == 2
    assert warned(told) == {}
    assert len(set(policies.recipes)) == 1
    assert adapter(broken) == adapter(whole)
    assert metrics(broken) == metrics(whole)


def test_a_recipe_that_fits_no_more_is_replaced_with_a_warning(config, policies):
    config = config.model_copy(update={"lora": config.lora.model_copy(update={"dropout": 0.0})})
    whole, broken = beside(config, "whole"), beside(config, "broken")
    run(whole)
    run(broken, stop_at="2/6")
    policies.when_loaded = lambda policy: limit_memory(policy, 300)
    told = run(broken)
    assert told.report.resumed_from_step == 2, "a plan by which less is computed at once is the same run"
    assert list(warned(told)) == ["ResumeReplanned"]
    assert policies.recipes[-1].max_tokens < 300
    assert_close(broken, whole)


def test_a_level_that_is_no_more_possible_is_replaced_with_a_warning(config, monkeypatch):
    broken = beside(config, "broken")
    run(broken, stop_at="2/6")
    real = start.choose_level
    monkeypatch.setattr(start, "choose_level", lambda policy, _wanted, *rest: real(policy, Level.SINGLE, *rest))
    told = run(broken)
    assert told.report.resumed_from_step == 2
    assert "at most 4096 tokens before, micro-batches of one row each from now on" in warned(told)["ResumeReplanned"]


def test_what_does_not_fit_ends_before_the_first_step(config, policies):
    policies.when_loaded = lambda policy: limit_memory(policy, 40)
    config = beside(config, "long")
    with pytest.raises(
        RunFailed, match=r"the row of line \d+ with \d+ tokens .* rows of up to \d+ tokens do"
    ) as caught:
        train(config, Telling(config), Event())
    assert caught.value.failure.exit_code == 14
    assert not Layout.of(config).metrics.exists()


@pytest.mark.parametrize("where", ["load", "optimizer"])
def test_running_out_of_memory_outside_a_pass_is_said_of_the_model(config, monkeypatch, where):
    def nothing_left(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "load":
        monkeypatch.setattr(start, "load_policy", nothing_left)
    else:
        monkeypatch.setattr(torch.optim.AdamW, "step", nothing_left)
    config = beside(config, "large")
    with pytest.raises(RunFailed, match="the model with its gradients and optimizer state does not fit") as caught:
        train(config, Telling(config), Event())
    assert caught.value.failure.exit_code == 14


def test_the_reference_tells_its_progress_and_goes_on_where_it_was_stopped(config, monkeypatch):
    monkeypatch.setattr(reference, "SHARD_SECONDS", 0)
    whole, broken = beside(config, "whole"), beside(config, "broken")
    told = run(whole)
    assert told.displays[:4] == ["reference 0/10", "reference 4/10", "reference 8/10", "reference 0/3"]
    run(broken, stop_at="reference 4/10")
    told = run(broken)
    assert told.displays[0] == "reference 4/10"
    assert told.report.resumed_from_step == 0
    assert adapter(broken) == adapter(whole)
    assert metrics(broken) == metrics(whole)


def test_the_reference_is_not_scored_again_after_a_restart(config):
    broken = beside(config, "broken")
    run(broken, stop_at="2/6")
    assert not [display for display in run(broken).displays if display.startswith("reference")]


def test_a_token_cache_that_prepare_did_not_write_is_refused(config):
    config = beside(config, "changed")
    path = Layout.of(config).prepared / TRAIN_FOLDER / "tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        RunFailed, match=r"train/tokens.npy is not what prepare wrote: run `finetune-train prepare`"
    ) as end:
        train(config, Telling(config), Event())
    assert end.value.failure.exit_code == 10
    path.unlink()
    with pytest.raises(RunFailed, match=r"train/tokens.npy is not what prepare wrote"):
        train(config, Telling(config), Event())
