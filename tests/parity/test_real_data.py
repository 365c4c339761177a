"""Every objective on real preference data, adapter and all weights: it learns, and says nothing that does not apply."""

from __future__ import annotations

from threading import Event

import pytest

from finetune_api.report import WarningCode
from finetune_api.trainer import Stage
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run.train import train
from tiny import save_model
from training import metrics_rows, shared_preferences, trainer_config, write_jsonl

LN_2 = 0.693147
OBJECTIVES = {
    "sft": {"type": "SFT"},
    "dpo": {"type": "DPO", "dpo": {"beta": 0.1}},
    "per-token": {"type": "DPO", "dpo": {"beta": 5, "normalizeLogratiosByLength": True}},
    "reference-free": {"type": "DPO", "dpo": {"beta": 0.1, "referenceFree": True}},
    "simpo": {"type": "DPO", "dpo": {"beta": 2, "simpoGamma": 1}},
    "rpo": {"type": "DPO", "dpo": {"beta": 0.1, "rpoAlpha": 1}},
    "simpo-rpo": {"type": "DPO", "dpo": {"beta": 2, "simpoGamma": 1, "rpoAlpha": 0.5}},
    "smoothed": {"type": "DPO", "dpo": {"beta": 0.1, "labelSmoothing": 0.1}},
}
FROM_LN_2 = {"dpo", "per-token", "smoothed"}
KINDS = {
    "LoRA": {"lora": {"rank": 4, "alpha": 8, "dropout": 0, "trainableModules": ["all-linear"]}},
    "Full": {"lora": None},
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A tiny model whose tokenizer has read the data, and the data itself, split in two."""
    folder = tmp_path_factory.mktemp("real")
    rows = shared_preferences()
    texts = [row["preferred_output"][0]["content"] for row in rows]
    save_model(folder / "model", texts=texts, hidden=32, vocab_size=1024)
    write_jsonl(folder / "train.jsonl", rows[:200])
    write_jsonl(folder / "eval.jsonl", rows[200:])
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(real, tmp_path, objective, kind):
    config = trainer_config(
        real / "model",
        tmp_path,
        trainingFile=f"file://{real}/train.jsonl",
        validationFile=f"file://{real}/eval.jsonl",
        trainingMethod=OBJECTIVES[objective],
        trainingKind=kind,
        hyperparameters={"nEpochs": 1, "learningRate": 5e-3, "seed": 7},
        maxSeqLength=384,
        evaluation={"nEvals": 1},
        checkpointing={"nCheckpoints": 1},
        **KINDS[kind],
    )
    reporter = Reporter(config.job, Stage.TRAIN, None)
    prepare(config, reporter.update)
    train(config, reporter, Event())
    rows = metrics_rows(tmp_path / "out" / "metrics.jsonl")
    before, *steps, after = rows
    assert after["eval/loss"] < before["eval/loss"]
    if objective in FROM_LN_2:
        assert before["eval/loss"] == pytest.approx(LN_2, abs=1e-5)
        assert steps[0]["train/loss"] == pytest.approx(LN_2, abs=1e-5)
    assert {warning.reason for warning in reporter.report.warnings} <= {WarningCode.FEW_STEPS}
    assert reporter.report.data.error_count == 0
