import json

import pytest

from configs import trainer_config
from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.push import check_repository, push
from hub import on_this_machine

REPO = "me/support-dpo"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client and its own


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with on_this_machine(tmp_path / "cache") as hub:
        hub.writers.add("token")
        monkeypatch.setenv("HF_TOKEN", "token")
        yield hub


@pytest.fixture
def config():
    return trainer_config(hf_repo=REPO)


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    return folder


def test_the_repository_is_made_private_and_the_weights_come_in_one_commit(hub, config, weights):
    check_repository(config)
    assert hub.repositories[REPO].private
    assert push(config, weights, 120) == f"{hub.url}/{REPO}"
    repository = hub.repositories[REPO]
    assert repository.files == {path.name: path.read_bytes() for path in weights.iterdir()}
    assert repository.commits == ["FineTuneJob default/tiny, step 120"]


def test_what_is_there_already_is_not_pushed_again(hub, config, weights):
    check_repository(config)
    push(config, weights, 120)
    uploads = [path for method, path in hub.requests if method == "PUT"]
    check_repository(config)
    push(config, weights, 120)
    assert len(hub.repositories[REPO].commits) == 1
    assert [path for method, path in hub.requests if method == "PUT"] == uploads


def test_a_repository_that_is_there_keeps_what_else_it_has(hub, config, weights):
    hub.add(REPO, {"LICENSE": b"MIT", "README.md": b"old"})
    check_repository(config)
    push(config, weights, 7)
    files = hub.repositories[REPO].files
    assert (files["LICENSE"], files["README.md"]) == (b"MIT", (weights / "README.md").read_bytes())


def test_a_hub_that_is_away_for_a_while_is_asked_again(hub, config, weights):
    check_repository(config)
    hub.failures += [500, 503, 502]
    push(config, weights, 1)
    assert len(hub.repositories[REPO].commits) == 1


def test_a_hub_that_stays_away_is_told_as_such(hub, config, weights):
    hub.failures += [500] * 1000
    failure = failure_of(lambda: check_repository(config))
    assert failure.sentence == f"output.hfRepo is {REPO}, which cannot be written: the Hub answered 500"
    problem = failure_of(lambda: push(config, weights, 1)).args["problem"]
    assert problem == "the endpoint does not answer like a Hub", "an error page where JSON is expected"


@pytest.mark.parametrize("there", [False, True])
def test_a_token_that_may_not_write_is_told_before_training(hub, config, monkeypatch, there):
    if there:
        hub.add(REPO, {})
    monkeypatch.setenv("HF_TOKEN", "reader")
    failure = failure_of(lambda: check_repository(config))
    assert failure.code is FailureCode.HUB_NOT_WRITABLE
    assert failure.sentence.endswith("there is none, or the token of hfTokenSecretRef may not write it")


def test_without_a_repository_nobody_is_asked(hub, weights):
    check_repository(trainer_config())
    assert push(trainer_config(), weights, 1) is None
    assert hub.requests == []


def failure_of(act):
    with pytest.raises(RunFailed) as end:
        act()
    return end.value.failure
