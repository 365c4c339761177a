"""A token goes to the Hub and nowhere else: not to logs, progress, the last word, or a file that the run leaves."""

import json
import signal

import pytest

from finetune_api import names
from finetune_trainer import __main__ as entry
from finetune_trainer.out import progress
from hub import on_this_machine
from training import preference_rows, trainer_config, write_jsonl

CANARY = "hf_CanaryCanaryCanaryCanaryCanary4242"
NOBODY = "http://127.0.0.1:9"
WRONG = "hf_WrongWrongWrongWrongWrongWrong1313"


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a pod says: each state of its report, and its termination message."""
    monkeypatch.setattr(names, "PROGRESS_PORT", 0)
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.0)
    word = tmp_path / "termination-log"
    word.touch()
    monkeypatch.setattr(progress.Reporter.last_word, "__defaults__", (word,))
    said, update = [], progress.Reporter.update

    def heard(self, **fields):
        update(self, **fields)
        said.append(progress.fitted(self.report, names.PROGRESS_BYTES).decode())

    monkeypatch.setattr(progress.Reporter, "update", heard)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda: "".join([*said, word.read_text()])
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("token", [CANARY, WRONG], ids=["right", "wrong"])
def test_a_token_stays_in_the_environment(tiny_model, tmp_path, told, capfd, monkeypatch, token):
    rows = write_jsonl(tmp_path / "rows.jsonl", preference_rows(8)).read_bytes()
    with on_this_machine(tmp_path / "cache") as hub:
        hub.add("me/model", {p.name: p.read_bytes() for p in tiny_model.iterdir()}, token=CANARY)
        hub.add("datasets/me/rows", {"train.jsonl": rows}, token=CANARY)
        for variable in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"):
            monkeypatch.setenv(variable, token)
        monkeypatch.setenv("WANDB_MODE", "offline")
        asked = trainer_config(
            tiny_model,
            tmp_path,
            start={"model": "hf://me/model"},
            trainingFile="hf://datasets/me/rows/train.jsonl",
            tracking={"wandb": {}, "tensorboard": True, "mlflow": {"trackingUri": NOBODY}},
        )
        config = tmp_path / "config.json"
        config.write_text(json.dumps(asked.to_json()))
        codes = [entry.main(["prepare", str(config)])]
        if token == CANARY:
            codes.append(entry.main(["train", str(config)]))
    assert codes == ([0, 0] if token == CANARY else [13])
    output = capfd.readouterr()
    assert "published dpo" in output.out if token == CANARY else "or the token may not read it" in output.err + told()
    left = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert len(left) >= 4
    assert token != CANARY or "MLflow cannot be reached" in told()
    found = [path for path in left if token.encode() in path.read_bytes()]
    assert (found, token in told(), token in output.out + output.err) == ([], False, False)
