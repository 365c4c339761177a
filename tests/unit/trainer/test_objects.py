import errno
import os

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from finetune_trainer.objects import abort_uploads, asking, create, filesystem
from finetune_trainer.trouble import StoreFailed, Trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (FileNotFoundError("bucket/key"), Trouble.NOT_FOUND),
        (ResourceNotFoundError("gone"), Trouble.NOT_FOUND),
        (PermissionError("AccessDenied"), Trouble.REFUSED),
        (NoCredentialsError(), Trouble.REFUSED),
        (EndpointConnectionError(endpoint_url="http://store"), Trouble.UNREACHABLE),
        (HttpResponseError("503"), Trouble.UNREACHABLE),
        (TimeoutError(), Trouble.UNREACHABLE),
    ],
)
def test_every_error_of_a_client_says_who_has_to_act(error, trouble):
    with pytest.raises(StoreFailed) as failed, asking():
        raise error
    assert failed.value.trouble is trouble


def test_our_own_mistakes_pass():
    with pytest.raises(KeyError), asking():
        raise KeyError("ours")


def test_an_environment_without_an_account_lacks_credentials(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StoreFailed, match="the credentials are missing") as failed:
        filesystem("az://container/x")
    assert failed.value.trouble is Trouble.REFUSED


def test_each_scheme_has_its_client(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ANON", "true")
    names = [type(filesystem(f"{scheme}://bucket/key")).__name__ for scheme in ("s3", "az")]
    assert names == ["S3FileSystem", "AzureBlobFileSystem"]


class Fails:
    """A store without requests that depend on what is there."""

    def __init__(self, store):
        self._store = store

    def pipe_file(self, uri, content, mode="overwrite"):
        if mode == "create":
            raise OSError(errno.ENOSYS, "NotImplemented")
        self._store.pipe_file(uri, content)

    def __getattr__(self, name):
        return getattr(self._store, name)


@pytest.mark.parametrize("able", [True, False])
def test_an_object_is_made_once_and_never_replaced(buckets, able):
    uri = f"{buckets.new()}/who"
    store = buckets.files if able else Fails(buckets.files)
    create(store, uri, b"first")
    create(store, uri, b"second")
    assert buckets.files.cat_file(uri) == b"first"


def test_uploads_that_may_not_be_seen_are_left_to_the_store(buckets, monkeypatch):
    def refused(*_args, **_kwargs):
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(buckets.files, "call_s3", refused)
    abort_uploads(buckets.files, "s3://bucket/team")
