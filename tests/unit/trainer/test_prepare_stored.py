"""The prepare step of a job whose output is in an object store."""

import tempfile
from pathlib import Path

import pytest

from buckets import Death, Died
from finetune_api.failures import FailureCode as Code
from finetune_trainer.mirror import StoreMirror
from finetune_trainer.prepare import prepare
from preparing import config_over, failure_of, quiet


@pytest.fixture
def config(light_model, tmp_path):
    return config_over(light_model, tmp_path)


@pytest.fixture
def new_disk(tmp_path, monkeypatch):
    """From each call on, an empty one, as a new pod has."""

    def change(name):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    return change


def test_a_store_gets_what_training_needs_whenever_it_dies(config, buckets, new_disk):
    """At every second request; only a whole one vouches for itself, and another pod ends the work."""
    uri = f"{buckets.new()}/team"
    filesystem = StoreMirror.of(Path("/"), uri).files
    private = "12345678-0000-0000-0000-000000000000/prepared"

    def live(number, death):
        new_disk(f"{number}-{death.at}")
        with death.threatens(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("finetune_trainer.mirror.filesystem", lambda _uri: filesystem)
            return prepare(config(output_uri=f"{uri}/{number}"), quiet)

    whole = Death()
    expected = live(0, whole)
    kept = buckets.below(f"{uri}/0/.finetune/{private}")
    for number in range(1, len(whole.requests) + 1, 2):
        with pytest.raises(Died):
            live(number, Death(number))
        left = buckets.below(f"{uri}/{number}/.finetune/{private}")
        assert "prepared.json" not in left or left.keys() == kept.keys(), whole.requests[number - 1]
        if number % 4 == 1:
            assert live(number, Death()).digests == expected.digests
            assert buckets.below(f"{uri}/{number}/.finetune/{private}").keys() == kept.keys()


def test_of_two_jobs_with_one_output_in_a_store_the_second_is_refused(config, buckets, new_disk):
    uri = f"{buckets.new()}/team"
    new_disk("first")
    prepare(config(output_uri=uri), quiet)
    new_disk("second")
    other = {"namespace": "default", "name": "tiny", "uid": "other"}
    assert failure_of(config(output_uri=uri, job=other)).code is Code.OUTPUT_TAKEN


def test_a_store_that_takes_nothing_is_told_before_the_data_is_read(config, buckets, new_disk):
    new_disk("disk")
    failure = failure_of(config(output_uri="s3://no-such-bucket/a", training_file="file:///gone"))
    assert (failure.code, failure.args["problem"]) == (Code.OUTPUT_NOT_WRITABLE, "it does not exist")
