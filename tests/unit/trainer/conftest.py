"""Models that several test files read and none writes."""

import pytest

from buckets import serving
from held import mlflow_server
from rows import save_light_model
from tiny import save_model, save_vision_model
from training import preference_rows, write_jsonl


@pytest.fixture(scope="session")
def light_model(tmp_path_factory):
    return save_light_model(tmp_path_factory.mktemp("light") / "model")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random Llama with tokenizer and chat template."""
    return save_model(tmp_path_factory.mktemp("tiny") / "model", hidden=32, layers=2, heads=4)


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory):
    """A random Qwen3-VL with tokenizer, chat template and image processor."""
    return save_vision_model(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture
def training_file(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", preference_rows(6))


@pytest.fixture(scope="session")
def buckets():
    """An object store; each test takes a bucket of its own."""
    with serving() as found:
        yield found


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory):
    """MLflow's own server; a test that kills it starts it again."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
