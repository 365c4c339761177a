import os
import signal
import threading
from dataclasses import replace

import fsspec
import pytest

from buckets import Death, Died
from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.mirror import Mirror, StoreMirror

PART = 8 * 2**20
"""Bytes of a file that goes up in parts in these tests."""


@pytest.fixture
def uri(buckets):
    return f"{buckets.new()}/team"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def mirror(root, uri):
    return StoreMirror.of(root, uri)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_what_was_put_is_there_on_an_empty_disk(root, mirror, buckets, uri, tmp_path):
    folder = write(root / "state", a="1", deep_b="2", last="3")
    mirror.put_folder(folder, last="last")
    assert buckets.below(uri) == {"state/a": b"1", "state/deep/b": b"2", "state/last": b"3"}
    elsewhere = StoreMirror.of(tmp_path / "other", uri)
    write(tmp_path / "other" / "state", left_over="x")
    elsewhere.fetch_folder(tmp_path / "other" / "state")
    found = {p.name: p.read_text() for p in (tmp_path / "other" / "state").rglob("*") if p.is_file()}
    assert found == {"a": "1", "b": "2", "last": "3"}


def test_a_name_that_begins_another_is_not_the_other(root, mirror):
    mirror.put_folder(write(root / "step-1", a="1"))
    mirror.put_folder(write(root / "step-10", b="2"))
    mirror.remove_folder(root / "step-1")
    assert mirror.names(root) == ["step-10"]
    mirror.fetch_folder(root / "step-1")
    assert not any((root / "step-1").iterdir())


def test_a_key_that_leads_out_of_its_folder_is_no_file_of_it(root, mirror, buckets, uri):
    mirror.put_file(write(root / "state", a="1") / "a")
    bucket = uri.removeprefix("s3://").split("/")[0]
    for key in ("team/state/../../../evil", "team/state//evil"):
        buckets.files.call_s3("put_object", Bucket=bucket, Key=key, Body=b"evil")
    mirror.fetch_folder(root / "state")
    assert [path.name for path in root.parent.rglob("*") if path.is_file()] == ["a"]


def test_a_folder_that_is_put_again_holds_nothing_of_the_one_before(root, mirror, buckets, uri):
    mirror.put_folder(write(root / "model", a="1", shard="2"))
    (root / "model" / "shard").unlink()
    mirror.put_folder(write(root / "model", a="3"))
    assert buckets.below(uri) == {"model/a": b"3"}


def test_a_file_is_fetched_as_it_is_there_or_not_at_all(root, mirror):
    mirror.put_file(write(root, a="1") / "a")
    write(root, a="changed", b="never put")
    mirror.fetch_file(root / "a")
    mirror.fetch_file(root / "b")
    assert (root / "a").read_text() == "1"
    assert not (root / "b").exists()
    mirror.remove_file(root / "a")
    mirror.remove_file(root / "a")
    mirror.fetch_file(root / "a")
    assert not (root / "a").exists()


def test_of_two_claims_the_first_counts(root, mirror, buckets, uri, tmp_path):
    other = tmp_path / "other"
    mirror.claim(write(root, who="first") / "who")
    StoreMirror.of(other, uri).claim(write(other, who="second") / "who")
    assert buckets.below(uri) == {"who": b"first"}


def test_two_claims_at_the_same_moment_leave_one(buckets, uri, tmp_path):
    together, folders = threading.Barrier(4), [tmp_path / str(number) for number in range(4)]

    def claim(folder):
        mirror = StoreMirror.of(folder, uri)
        together.wait()
        mirror.claim(folder / "who")

    threads = [threading.Thread(target=claim, args=(write(folder, who=folder.name),)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert buckets.below(uri)["who"].decode() in {"0", "1", "2", "3"}


def test_halves_are_removed_and_the_whole_stay(root, mirror, buckets, uri):
    mirror.put_folder(write(root / "states" / "step-1", a="1", manifest="2"), last="manifest")
    mirror.put_folder(write(root / "states" / "step-2", a="1"))
    mirror.remove_halves(root / "states", "manifest")
    assert set(buckets.below(uri)) == {"states/step-1/a", "states/step-1/manifest"}


def test_whenever_a_process_dies_what_vouches_is_there_only_with_all_the_others(root, mirror, buckets, tmp_path):
    """Put a folder, put another in its place, remove it: at every request of that."""
    old, new = {"a": b"old", "b": b"old", "last": b"old"}, {"a": b"new", "c": b"new", "last": b"new"}

    def live(death, to):
        dying, state = replace(mirror, uri=to), root / "state"
        with death.threatens():
            dying.put_folder(write(state, a="old", b="old", last="old"), last="last")
            (state / "b").unlink()
            dying.put_folder(write(state, a="new", c="new", last="new"), last="last")
            dying.remove_folder(state, first="last")

    whole = Death()
    live(whole, f"{mirror.uri}/whole")
    assert len(whole.requests) > 12
    for at in range(1, len(whole.requests) + 1):
        root.rename(tmp_path / str(at - 1))
        with pytest.raises(Died):
            live(Death(at), f"{mirror.uri}/{at}")
        left = buckets.below(f"{mirror.uri}/{at}/state")
        assert "last" not in left or left in (old, new), whole.requests[at - 1]


def test_an_upload_in_parts_that_was_killed_shows_nowhere_and_is_ended(root, mirror, buckets, uri, monkeypatch):
    """The process is really gone: nobody is left to abort anything."""
    root.mkdir()
    path = root / "weights"
    path.write_bytes(os.urandom(3 * PART))
    child = os.fork()
    if child == 0:
        in_parts(monkeypatch)
        dying = StoreMirror.of(root, uri)
        real = type(dying.files)._call_s3

        async def call(files, method, *args, **kwargs):
            if method == "complete_multipart_upload":
                os.kill(os.getpid(), signal.SIGKILL)
            return await real(files, method, *args, **kwargs)

        monkeypatch.setattr(type(dying.files), "_call_s3", call)
        dying.put_file(path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert buckets.below(uri) == {}
    assert buckets.unfinished(uri) == ["team/weights"]
    mirror.abort_uploads(root)
    assert buckets.unfinished(uri) == []
    in_parts(monkeypatch)
    mirror.put_file(path)
    assert buckets.below(uri)["weights"] == path.read_bytes()


def test_only_uploads_into_the_folder_are_ended(root, mirror, buckets, uri):
    bucket = uri.removeprefix("s3://").split("/")[0]
    for key in ("team/mine/a", "team/mine-too/a"):
        buckets.files.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    mirror.abort_uploads(root / "mine")
    assert buckets.unfinished(uri) == ["team/mine-too/a"]


def in_parts(monkeypatch):
    """Files of more than 16 MiB go up in parts, as those of more than 100 MB do."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: PART)


def test_without_credentials_it_cannot_be_written(root, uri, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    failure = failure_of(lambda: StoreMirror.of(root, uri).put_file(write(root, a="1") / "a"))
    assert failure.code is FailureCode.OUTPUT_NOT_WRITABLE
    assert failure.args == {"uri": uri, "problem": "the credentials are missing or do not allow it"}


def test_a_bucket_that_is_not_there_cannot_be_written(root):
    failure = failure_of(lambda: StoreMirror.of(root, "s3://nowhere/x").put_file(write(root, a="1") / "a"))
    assert failure.sentence == "s3://nowhere/x cannot be written: it does not exist"


def test_a_store_out_of_reach_is_told_as_such(root, uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    failure = failure_of(lambda: StoreMirror.of(root, uri).put_file(write(root, a="1") / "a"))
    assert failure.sentence == f"{uri} cannot be written: EndpointConnectionError"


def test_a_full_disk_of_this_machine_is_not_the_store(root, mirror, monkeypatch):
    mirror.put_file(write(root, a="1") / "a")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror.files, "cat_file", full)
    assert failure_of(lambda: mirror.fetch_file(root / "a")).code is FailureCode.STORAGE_FULL


def failure_of(act):
    with pytest.raises(RunFailed) as end:
        act()
    return end.value.failure


def test_on_a_volume_everything_is_where_it_belongs(tmp_path):
    folder = write(tmp_path / "state", a="1", last="2")
    mirror = Mirror()
    mirror.abort_uploads(tmp_path)
    mirror.put_folder(folder, last="last")
    mirror.spare(folder)
    mirror.fetch_folder(folder)
    mirror.remove_halves(tmp_path, "last")
    assert mirror.names(folder) == ["a", "last"]
    assert mirror.names(tmp_path / "nowhere") == []


def test_what_is_gone_already_is_removed(tmp_path):
    """Of a request that is sent again the first may have been heard; and not every store is silent about that."""
    files = fsspec.filesystem("memory")
    mirror = StoreMirror(tmp_path, "memory://removed", files)
    (tmp_path / "a").write_text("a")
    mirror.put_file(tmp_path / "a")
    for _ in range(2):
        mirror.remove_file(tmp_path / "a")
    assert not files.exists("memory://removed/a")
