"""Where a run's files lie."""

import tempfile

import pytest

from configs import trainer_config
from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout


def test_published_and_private_lie_apart_below_the_output_uri(tmp_path):
    config = trainer_config(
        output_uri="pvc://out/support", output_name="default/tiny-12345678", mounts={"pvc://out": str(tmp_path)}
    )
    layout = Layout.of(config)
    output, private = tmp_path / "support/default/tiny-12345678", tmp_path / "support/.finetune" / config.job.uid
    assert (layout.output, layout.private) == (output, private)
    assert (layout.prepared, layout.recovery) == (private / "prepared", private / "recovery")
    assert layout.final == output / "adapter"
    assert layout.metrics == output / "metrics.jsonl"
    assert layout.uri_of(layout.checkpoints / "step-3") == "pvc://out/support/default/tiny-12345678/checkpoints/step-3"
    assert layout.uri_of(layout.output) == "pvc://out/support/default/tiny-12345678"


def test_without_a_name_the_output_uri_is_the_folder_itself(tmp_path):
    layout = Layout.of(
        trainer_config(output_uri=f"file://{tmp_path}/", output_name="", training_kind="Full", lora=None)
    )
    assert layout.output == tmp_path
    assert layout.final == tmp_path / "model"
    assert layout.uri_of(layout.final) == f"file://{tmp_path}/model"


def test_an_output_that_leads_out_of_its_volume_is_refused(tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "link").symlink_to("/etc")
    with pytest.raises(RunFailed) as ended:
        Layout.of(trainer_config(output_uri="pvc://out/link", mounts={"pvc://out": str(volume)}))
    assert ended.value.failure.code is FailureCode.OUTPUT_NOT_WRITABLE


def test_in_a_store_the_paths_are_the_same_in_a_folder_of_this_pod(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uri = f"{buckets.new()}/team"
    layout = Layout.of(trainer_config(output_uri=uri))
    assert layout.output.is_relative_to(tmp_path)
    assert layout.private.relative_to(layout.output.parents[1]).as_posix() == f".finetune/{trainer_config().job.uid}"
    assert layout.uri_of(layout.final) == f"{uri}/default/tiny-12345678/adapter"


def test_what_another_job_uploads_below_the_same_uri_is_left_alone(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uri = buckets.new()
    own = ("team/default/tiny-12345678/adapter/a", f"team/.finetune/{trainer_config().job.uid}/recovery/a")
    others = ("team/default/other/a", "team/.finetune/other/a")
    for key in (*own, *others):
        buckets.files.call_s3("create_multipart_upload", Bucket=uri.removeprefix("s3://"), Key=key)
    Layout.of(trainer_config(output_uri=f"{uri}/team")).clear()
    assert sorted(buckets.unfinished(uri)) == sorted(others)
