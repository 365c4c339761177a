"""Files by https from a real TLS server: which may be read, from where, and whole or not at all."""

import hashlib
import random

import pytest

import cutting
from finetune_trainer import download as download_module
from finetune_trainer.data import https
from finetune_trainer.data.https import MAX_REDIRECTS, NotAllowed, Web, is_public
from finetune_trainer.download import download
from finetune_trainer.trouble import StoreFailed, Trouble
from web import serving

ROWS = random.Random(0).randbytes(600_000)


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Seconds that were not waited."""
    waited = []
    monkeypatch.setattr(download_module.time, "sleep", waited.append)
    return waited


@pytest.fixture
def site():
    with serving() as site:
        site.files["/data/train.jsonl"] = ROWS
        yield site


@pytest.fixture
def fetch(site, tmp_path):
    """Fetch a URL of the site, as `hosts` and `may_reach` admit it, and return what lies on the disk then."""

    def fetch(url, hosts=("localhost",), may_reach=lambda address: True, told=download_module.untold):
        web = Web(hosts, may_reach, site.trusted)
        download(lambda start, tag: web.open(url, start, tag), tmp_path / "rows", told)
        return (tmp_path / "rows").read_bytes()

    return fetch


def test_a_file_comes_as_it_is_and_says_how_far_it_is(site, fetch):
    told = []
    assert fetch(site.url("/data/train.jsonl"), told=lambda *far: told.append(far)) == ROWS
    assert told[-1] == (len(ROWS), len(ROWS))


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_server_may_leave_out_what_it_likes(site, fetch, tags, lengths):
    site.tags, site.lengths = tags, lengths
    assert fetch(site.url("/data/train.jsonl")) == ROWS


def test_a_connection_cut_ten_times_in_the_middle_still_yields_the_right_digest(site, fetch):
    with cutting.to(site.port) as wire:
        wire.cuts, wire.after = 10, 50_000
        found = fetch(site.url("/data/train.jsonl").replace(str(site.port), str(wire.port)))
    assert wire.done == 10
    assert hashlib.sha256(found).digest() == hashlib.sha256(ROWS).digest()
    assert len({wanted for _, wanted in site.requests}) == 11, "each goes on where the one before stopped"


def test_a_file_that_changes_in_the_middle_comes_whole_as_it_is_then(site, fetch):
    other = bytes(reversed(ROWS))
    with cutting.to(site.port) as wire:
        wire.cuts, wire.after = 1, 300_000
        wire.meanwhile = lambda: site.files.update({"/data/train.jsonl": other})
        assert fetch(site.url("/data/train.jsonl").replace(str(site.port), str(wire.port))) == other


@pytest.mark.parametrize("lacks", ["ranges", "tags"])
def test_what_cannot_be_read_on_begins_anew(site, fetch, lacks):
    setattr(site, lacks, False)
    with cutting.to(site.port) as wire:
        wire.cuts, wire.after = 2, 100_000
        assert fetch(site.url("/data/train.jsonl").replace(str(site.port), str(wire.port))) == ROWS


def test_what_is_cut_each_time_and_cannot_be_read_on_is_given_up(site, fetch):
    site.ranges = False
    with cutting.to(site.port) as wire:
        wire.cuts, wire.after = 100, 100_000
        with pytest.raises(StoreFailed, match="it cannot be read on in the middle") as failed:
            fetch(site.url("/data/train.jsonl").replace(str(site.port), str(wire.port)))
    assert failed.value.trouble is Trouble.UNREACHABLE


def test_a_server_that_is_down_is_asked_again_ever_later(site, fetch, slept):
    site.answers["/data/train.jsonl"] = [503, 429, 500]
    assert fetch(site.url("/data/train.jsonl")) == ROWS
    assert slept == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("status", "trouble"),
    [(401, Trouble.REFUSED), (403, Trouble.REFUSED), (404, Trouble.NOT_FOUND), (410, Trouble.NOT_FOUND)],
)
def test_an_answer_that_stays_is_final(site, fetch, slept, status, trouble):
    site.answers["/data/train.jsonl"] = [status]
    with pytest.raises(StoreFailed, match=f"the server answered {status}") as failed:
        fetch(site.url("/data/train.jsonl"))
    assert (failed.value.trouble, slept) == (trouble, [])


def test_a_host_that_is_not_listed_is_not_asked(site, fetch):
    with pytest.raises(NotAllowed, match=r"access\.httpsHosts in the FineTuneRuntime admits localhost: ad"):
        fetch(site.url("/data/train.jsonl"), hosts=("*.example", "local"))
    with pytest.raises(NotAllowed):
        fetch(site.url("/data/train.jsonl"), hosts=())
    assert site.requests == []


def test_a_redirect_is_held_to_the_same_list(site, fetch):
    site.redirects["/from"] = site.url("/data/train.jsonl", "127.0.0.1")
    assert fetch(site.url("/from"), hosts=("localhost", "127.0.0.1")) == ROWS
    site.requests.clear()
    with pytest.raises(NotAllowed, match=r"no entry of access.httpsHosts in the FineTuneRuntime admits 127\.0\.0\.1"):
        fetch(site.url("/from"))
    assert site.requests == [("/from", None)]


def test_a_redirect_within_a_site_may_be_relative_and_hold_a_query(site, fetch):
    site.files["/signed?key=a%20b"] = ROWS
    site.redirects["/from"] = "signed?key=a%20b"
    assert fetch(site.url("/from")) == ROWS


def test_a_redirect_to_plain_http_or_with_credentials_or_to_nowhere_is_refused(site, fetch):
    for target in ("http://localhost/x", "ftp://localhost/x", "https://me:pw@localhost/x", "https://loc\u00e4l/x"):
        site.redirects["/from"] = target
        with pytest.raises(NotAllowed, match="it leads on to"):
            fetch(site.url("/from"))


def test_redirects_end(site, fetch):
    site.redirects["/round"] = "/round"
    with pytest.raises(NotAllowed, match=f"it leads on more than {MAX_REDIRECTS} times"):
        fetch(site.url("/round"))
    assert len(site.requests) == MAX_REDIRECTS + 1


def test_a_private_address_is_never_connected_to(site, fetch):
    with pytest.raises(NotAllowed, match=r"localhost has the address (127\.0\.0\.1|::1), which is not a public one"):
        fetch(site.url("/data/train.jsonl"), may_reach=is_public)
    assert site.requests == []


def test_a_redirect_to_a_private_address_is_refused(site, fetch):
    site.redirects["/from"] = site.url("/data/train.jsonl", "127.0.0.1")
    judged = []

    def may_reach(address):
        judged.append(address)
        return len(judged) == 1

    with pytest.raises(NotAllowed, match="which is not a public one"):
        fetch(site.url("/from"), hosts=("*",), may_reach=may_reach)
    assert site.requests == [("/from", None)]


def test_the_connection_goes_to_the_address_that_was_judged(site, fetch, monkeypatch):
    """The name is known to nobody but the first answer: whoever resolved it again would find nothing."""
    answers = [[(2, 1, 6, "", ("127.0.0.1", site.port))]]
    monkeypatch.setattr(https, "getaddrinfo", lambda *_args, **_more: answers.pop(0))
    judged = []
    found = fetch(site.url("/data/train.jsonl", "files.example"), ("files.example",), lambda a: not judged.append(a))
    assert (found, judged, answers) == (ROWS, ["127.0.0.1"], [])


def test_one_private_address_among_public_ones_is_enough(site, fetch, monkeypatch):
    found = [(2, 1, 6, "", (address, site.port)) for address in ("192.0.2.1", "10.0.0.1")]
    monkeypatch.setattr(https, "getaddrinfo", lambda *_args, **_more: found)
    with pytest.raises(NotAllowed, match=r"has the address 10\.0\.0\.1"):
        fetch(site.url("/x", "files.example"), ("*",), lambda address: address != "10.0.0.1")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "fec0::1"),
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "2002:a00:1::1", "2001:db8::1"),
        *("::127.0.0.1", "::10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1"),
    ],
)
def test_addresses_that_are_not_of_the_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"])
def test_addresses_of_the_internet(address):
    assert is_public(address)


def test_a_certificate_of_nobody_is_not_trusted(site, tmp_path):
    web = Web(("localhost",), lambda address: True)
    with pytest.raises(StoreFailed, match="its certificate is not trusted") as failed:
        download(lambda start, tag: web.open(site.url("/data/train.jsonl"), start, tag), tmp_path / "rows")
    assert failed.value.trouble is Trouble.UNREACHABLE


def test_a_certificate_of_another_host_is_not_trusted(site, fetch, monkeypatch):
    monkeypatch.setattr(https, "getaddrinfo", lambda *_args, **_more: [(2, 1, 6, "", ("127.0.0.1", site.port))])
    with pytest.raises(StoreFailed, match="its certificate is not trusted"):
        fetch(site.url("/data/train.jsonl", "elsewhere.example"), ("*",))


@pytest.mark.parametrize("lengths", [True, False])
def test_more_than_the_limit_is_refused_told_or_not(site, fetch, monkeypatch, lengths):
    site.lengths = lengths
    monkeypatch.setattr(https, "MAX_BYTES", len(ROWS) - 1)
    with pytest.raises(NotAllowed, match="it has more than 50 GiB: put the file on a claim or into an object store"):
        fetch(site.url("/data/train.jsonl"))


def test_a_name_that_nobody_knows_is_unreachable(site, fetch):
    with pytest.raises(StoreFailed) as failed:
        fetch("https://nowhere.invalid/x", ("*",))
    assert failed.value.trouble is Trouble.UNREACHABLE
