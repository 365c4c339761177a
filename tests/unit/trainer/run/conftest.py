"""A run of 24 steps that the tests of this room stop, kill and compare."""

import pytest

from runs import keep_last_states, prepared, run
from training import preference_rows, trainer_config, write_jsonl

EPOCHS = {"nEpochs": 8, "learningRate": 1e-2, "seed": 7}
"""8 epochs of 3 steps."""
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.3, "trainableModules": ["all-linear"]}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", preference_rows(10))
    write_jsonl(folder / "eval.jsonl", preference_rows(3, seed=1))
    return folder


@pytest.fixture(scope="session")
def settings(tiny_model, data):
    """24 steps with dropout, four evaluations, three checkpoints, and a saved state after every step."""
    return trainer_config(
        tiny_model,
        data,
        validationFile=f"file://{data}/eval.jsonl",
        hyperparameters=EPOCHS,
        lora=DROPOUT,
        evaluation={"nEvals": 4},
        checkpointing={"nCheckpoints": 3, "recoveryPeriodSeconds": 0},
    )


@pytest.fixture
def config(settings, tmp_path):
    return settings.model_copy(update={"output_uri": f"file://{tmp_path}/out"})


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
    """What a run leaves that never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        keep_last_states(patch)
        run(prepared(settings.model_copy(update={"output_uri": f"file://{folder}"})))
    return folder
