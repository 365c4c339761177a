"""URIs: what each field takes, and their parts."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_api.job import job_from
from finetune_api.runtime import runtime_from
from finetune_api.uris import UriParts, parse_uri
from manifests import job, runtime


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("pvc://claim", UriParts("pvc", "claim")),
        ("pvc://claim/a/b.jsonl", UriParts("pvc", "claim", "a/b.jsonl")),
        ("configmap://map/key.jsonl", UriParts("configmap", "map", "key.jsonl")),
        ("hf://org/model", UriParts("hf", "org/model")),
        ("hf://org/model@main", UriParts("hf", "org/model", revision="main")),
        ("hf://datasets/org/set/a/b.jsonl", UriParts("hf", "datasets/org/set", "a/b.jsonl")),
        ("hf://datasets/org/set@v1/a.jsonl", UriParts("hf", "datasets/org/set", "a.jsonl", "v1")),
        ("s3://bucket.with-dots/a/b", UriParts("s3", "bucket.with-dots", "a/b")),
        ("file:///data/a.jsonl", UriParts("file", "", "/data/a.jsonl")),
    ],
)
def test_parts(uri, parts) -> None:
    assert parse_uri(uri) == parts


def test_a_volume_is_scheme_and_root() -> None:
    assert parse_uri("pvc://claim/a/b").volume == "pvc://claim"


@pytest.mark.parametrize(
    "path", ["..", "a/../b", "...", "a/..b", "/a", "a//b", "a/", "a b", "a\n", "a?x", "a#x", "a\\b", "ä", "$(x)", "a\0"]
)
def test_no_path_leaves_its_volume_or_means_something_else(path) -> None:
    with pytest.raises(ValidationError, match="must be pvc://claim/path"):
        job_from(job(trainingFile=f"pvc://claim/{path}"))


@pytest.mark.parametrize("uri", ["s3://b/k", "https://h/f", "file:///a", "pvc://Claim/a", "pvc:///a", "a/b"])
def test_what_is_no_source_of_rows(uri) -> None:
    with pytest.raises(ValidationError):
        job_from(job(trainingFile=uri))


def test_local_runs_take_files() -> None:
    manifest = job(trainingFile="file:///data/a.jsonl", model="file:///models/a", output={"uri": "file:///out"})
    with pytest.raises(ValidationError):
        job_from(manifest)
    read = job_from(manifest, local=True)
    assert read.spec.training_file == "file:///data/a.jsonl"
    with pytest.raises(ValidationError):
        job_from(job(trainingFile="https://host/a"), local=True)


@pytest.mark.parametrize(
    ("uri", "good"),
    [
        ("pvc://claim/{namespace}/{name}", True),
        ("pvc://claim", True),
        ("s3://bucket/{namespace}/{name}", True),
        ("gs://bucket/models", True),
        ("az://container/models/{name}", True),
        ("s3://bucket", False),
        ("s3://{namespace}/a", False),
        ("s3://bucket/../a", False),
        ("pvc://claim/{uid}", False),
        ("pvc://{namespace}/a", False),
        ("pvc://claim/a{name}", False),
        ("hf://org/{name}", False),
    ],
)
def test_output_templates(uri, good) -> None:
    manifest = runtime(defaults={"output": {"uri": uri}})
    if good:
        assert runtime_from(manifest).spec.defaults.output.uri == uri
    else:
        with pytest.raises(ValidationError, match="as segments"):
            runtime_from(manifest)
