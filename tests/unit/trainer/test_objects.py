import os

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from finetune_trainer.objects import StoreFailed, Trouble, asking, filesystem


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
