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
        ("s3://bucket/a/b.jsonl", UriParts("s3", "bucket", "a/b.jsonl")),
        ("https://host.example:8443/a/b.jsonl", UriParts("https", "host.example:8443", "a/b.jsonl")),
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


@pytest.mark.parametrize("root", ["s3://bucket", "gs://bucket_1", "az://container", "https://host", "https://h.io:443"])
@pytest.mark.parametrize("path", ["a.jsonl", "day=2026-01-01/part+1~a.jsonl", ".hidden/a"])
def test_objects_and_files_of_hosts_are_sources_of_rows(root, path) -> None:
    assert job_from(job(trainingFile=f"{root}/{path}")).spec.training_file == f"{root}/{path}"


@pytest.mark.parametrize("root", ["s3://bucket", "gs://bucket", "az://container"])
def test_folders_of_object_stores_are_models(root) -> None:
    assert job_from(job(model=f"{root}/models/tiny")).spec.model == f"{root}/models/tiny"
    with pytest.raises(ValidationError, match="or a folder"):
        job_from(job(model=f"{root}/../tiny"))


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "https"])
@pytest.mark.parametrize(
    "rest",
    [
        *("b", "b/", "/k", "b/..", "b/a/../c", "b/...", "b//a", "b/a/", "b/a b", "b/a\n", "b/a?x=1", "b/a#1", "b/a\\b"),
        *("b/%2e%2e/a", "b/a*", "b/[a]", "B/a", "me:pw@b/a", "b@account/a", "b/ä", "b/$(x)", "-b/a", "b-/a", "b/a:1"),
    ],
)
def test_what_a_client_might_read_otherwise_is_no_source_of_rows(scheme, rest) -> None:
    with pytest.raises(ValidationError, match="without query or credentials"):
        job_from(job(trainingFile=f"{scheme}://{rest}"))


@pytest.mark.parametrize("uri", ["http://h/f", "ftp://h/f", "file:///a", "pvc://Claim/a", "pvc:///a", "a/b"])
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
        job_from(job(trainingFile="http://host/a"), local=True)


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
