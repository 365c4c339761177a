"""Objects and folders from stores that the real clients speak to, over wires that break."""

import asyncio
import hashlib
import os
import random
import signal
import socket
import threading
from pathlib import Path

import pytest

import cutting
import stores
from finetune_api.failures import FailureCode
from finetune_trainer import clients
from finetune_trainer import download as download_module
from finetune_trainer.download import WAITS, fetch_folder, fetch_object
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.objects import filesystem, list_folder
from finetune_trainer.trouble import StoreFailed, Trouble

ROWS = random.Random(0).randbytes(3_000_000)
SERVERS = {
    "s3": (stores.s3, stores.S3.environment),
    "gs": (stores.google, stores.google_environment),
    "az": (stores.azure, stores.azure_environment),
}


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Seconds that were not waited."""
    waited, pause = [], asyncio.sleep
    monkeypatch.setattr(download_module.time, "sleep", waited.append)
    monkeypatch.setattr(asyncio, "sleep", lambda _seconds: pause(0))  # what the clients wait by themselves
    return waited


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def server(scheme):
    with SERVERS[scheme][0]() as server:
        yield server


@pytest.fixture
def store(server, scheme, monkeypatch):
    """A store with one object, its client told of it by the environment."""
    for name, value in SERVERS[scheme][1](server.port).items():
        monkeypatch.setenv(name, value)
    server.put("bucket", "data/train.jsonl", ROWS)
    return server


@pytest.fixture
def wire(store, scheme, monkeypatch):
    """A wire to the store, on which its client depends."""
    with cutting.to(store.port) as wire:
        for name, value in SERVERS[scheme][1](wire.port).items():
            monkeypatch.setenv(name, value)
        yield wire


def test_an_object_comes_as_it_is_and_says_how_far_it_is(store, scheme, tmp_path):
    told = []
    fetch_object(f"{scheme}://bucket/data/train.jsonl", tmp_path / "rows", lambda *far: told.append(far))
    assert (tmp_path / "rows").read_bytes() == ROWS
    assert told[-1] == (len(ROWS), len(ROWS))


def test_an_empty_object_is_an_empty_file(store, scheme, tmp_path):
    store.put("bucket", "empty", b"")
    fetch_object(f"{scheme}://bucket/empty", tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == b""


def test_a_connection_cut_ten_times_in_the_middle_still_yields_the_right_digest(wire, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "BLOCK_BYTES", 300_000)
    wire.cuts, wire.after = 10, 200_000
    fetch_object(f"{scheme}://bucket/data/train.jsonl", tmp_path / "rows")
    assert wire.done == 10
    assert hashlib.sha256((tmp_path / "rows").read_bytes()).digest() == hashlib.sha256(ROWS).digest()


def test_an_object_that_changes_in_the_middle_comes_whole_as_it_is_then(store, wire, scheme, tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "BLOCK_BYTES", 300_000)
    other = bytes(reversed(ROWS))
    wire.cuts, wire.after = 1, 2_000_000
    wire.meanwhile = lambda: store.put("bucket", "data/train.jsonl", other)
    fetch_object(f"{scheme}://bucket/data/train.jsonl", tmp_path / "rows")
    assert wire.done == 1
    assert (tmp_path / "rows").read_bytes() == other


def test_what_is_not_there_is_not_found_and_not_asked_for_twice(store, scheme, tmp_path, slept):
    for uri in (f"{scheme}://bucket/gone", f"{scheme}://nowhere/gone"):
        with pytest.raises(StoreFailed, match="it does not exist") as refused:
            fetch_object(uri, tmp_path / "rows")
        assert (refused.value.trouble, slept) == (Trouble.NOT_FOUND, [])


@pytest.mark.parametrize("scheme", ["gs", "az"], indirect=True)
@pytest.mark.parametrize("fetch", [fetch_object, fetch_folder])
def test_what_the_credentials_do_not_allow_is_refused_and_not_asked_for_twice(
    store, scheme, tmp_path, slept, monkeypatch, fetch
):
    monkeypatch.setattr(store, "denied", True)
    with pytest.raises(StoreFailed, match="the credentials are missing or do not allow it") as refused:
        fetch(f"{scheme}://bucket/data", tmp_path / "rows")
    assert (refused.value.trouble, slept) == (Trouble.REFUSED, [])


def test_a_folder_comes_with_all_that_is_in_it(store, scheme, tmp_path):
    names = ("config.json", "model.safetensors", "onnx/model.onnx")
    for name in names:
        store.put("bucket", f"model/{name}", name.encode())
    store.put("bucket", "model-evil/config.json", b"not of this folder")
    fetch_folder(f"{scheme}://bucket/model", tmp_path)
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {name: name for name in names}


def test_an_object_whose_name_leads_out_of_the_folder_is_left_out(store, scheme, tmp_path):
    store.put("bucket", "odd/good", b"good")
    for name in ("odd/../../evil", "odd//etc/evil", "odd/./evil", "odd/a\\..\\evil"):
        store.put("bucket", name, b"evil")
    uri = f"{scheme}://bucket/odd"
    assert [found.name for found in list_folder(filesystem(uri), uri)] == ["good"]


def test_a_folder_without_objects_is_not_found(store, scheme, tmp_path):
    with pytest.raises(StoreFailed, match="there is nothing below it") as refused:
        fetch_folder(f"{scheme}://bucket/data/train.jsonl", tmp_path)
    assert refused.value.trouble is Trouble.NOT_FOUND


def test_a_file_of_a_folder_that_changes_is_never_mixed_with_the_others(store, scheme, tmp_path):
    for name in ("a", "b"):
        store.put("bucket", f"two/{name}", b"before")
    client, uri = filesystem(f"{scheme}://bucket/two"), f"{scheme}://bucket/two"
    listed = list_folder(client, uri)
    store.put("bucket", "two/b", b"after!")
    with pytest.raises(StoreFailed, match="it changed while it was read") as refused:
        download_module.fetch_listed(client, listed, tmp_path)
    assert refused.value.trouble is Trouble.CHANGED


def test_a_store_that_nobody_serves_is_given_up_after_growing_waits(scheme, monkeypatch, tmp_path, slept):
    monkeypatch.setattr(download_module, "WAITS", WAITS[:2])
    for name, value in SERVERS[scheme][1](9).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreFailed) as refused:
        fetch_object(f"{scheme}://bucket/data/train.jsonl", tmp_path / "rows")
    assert (refused.value.trouble, slept) == (Trouble.UNREACHABLE, [1.0, 2.0])


def test_a_full_disk_is_told_as_such(store, scheme):
    with pytest.raises(RunFailed) as ended:
        fetch_object(f"{scheme}://bucket/data/train.jsonl", Path("/dev/full"))
    assert (ended.value.failure.code, ended.value.failure.args) == (FailureCode.STORAGE_FULL, {"uri": "/dev"})


def test_a_stop_is_heard_while_a_store_is_silent(tmp_path, monkeypatch):
    """A pod that is to go must not wait for what does not come; whoever stops it raises in the midst of it."""

    def stop(*_):
        raise failed(FailureCode.STOPPED, step=0)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for name, value in stores.S3.environment(listener.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        server = threading.Thread(target=_begin_and_fall_silent, args=(listener, over))
        server.start()
        before = signal.signal(signal.SIGUSR1, stop)
        try:
            with pytest.raises(RunFailed) as ended:
                fetch_object("s3://bucket/rows", tmp_path / "rows", lambda *_far: _signal_soon())
        finally:
            signal.signal(signal.SIGUSR1, before)
            over.set()
            server.join()
    assert ended.value.failure.code is FailureCode.STOPPED


def _begin_and_fall_silent(listener, over):
    client, _ = listener.accept()
    with client:
        client.recv(1 << 16)
        client.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 1000000\r\n\r\nthe first bytes')
        over.wait()


def _signal_soon():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
