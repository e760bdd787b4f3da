import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from etude.data import catalogue

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every address, ranges included; `breaks_at` cuts answers short."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks_at: int | None = None
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if self.path.endswith("gone"):
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        body = CONTENT[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.server.breaks_at is None else body[: self.server.breaks_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def table(monkeypatch, tmp_path, server):
    monkeypatch.delenv("ETUDE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = {"kind": "text", "summary": "toy", "licence": "none", "home": "https://example.org", "bytes": len(CONTENT)}
    address = f"http://127.0.0.1:{server.server_port}"
    checksum = hashlib.sha256(CONTENT).hexdigest()
    manifest = hashlib.sha256(f"{checksum}  deep/a\n".encode()).hexdigest()
    entries = {
        "toy": {**facts, "files": {"sub/toy.bin": {"sha256": checksum, "url": f"{address}/toy"}}},
        "wrong": {**facts, "files": {"toy.bin": {"sha256": "0" * 64, "url": f"{address}/toy"}}},
        "gone": {**facts, "files": {"toy.bin": {"sha256": checksum, "url": f"{address}/gone"}}},
        "byhand": {**facts, "files": {"toy.bin": {"sha256": checksum}}, "note": "one file"},
        "many": {**facts, "count": 1, "manifest": manifest},
    }
    monkeypatch.setattr(catalogue, "_table", lambda: entries)
    return tmp_path / "etude" / "data"


def test_fetching_puts_the_checked_file_into_the_cache(table):
    folder = catalogue.fetch("toy")
    assert folder == table / "toy"
    assert (folder / "sub" / "toy.bin").read_bytes() == CONTENT
    assert catalogue.locate("toy") == folder
    assert catalogue.verify("toy") == []


def test_a_second_fetch_downloads_nothing(table, server):
    catalogue.fetch("toy")
    catalogue.fetch("toy")
    assert len(server.ranges) == 1


def test_a_broken_download_is_taken_up_where_it_stopped(table, server):
    server.breaks_at = 1000
    with pytest.raises(ConnectionError, match="broke off after 1000 of 10240 bytes"):
        catalogue.fetch("toy")
    with pytest.raises(FileNotFoundError):
        catalogue.locate("toy")
    server.breaks_at = None
    assert (catalogue.fetch("toy") / "sub" / "toy.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


def test_a_wrong_checksum_keeps_nothing(table):
    with pytest.raises(ValueError, match=r"expected 0000.*nothing was kept"):
        catalogue.fetch("wrong")
    assert not list((table / "wrong").iterdir())


def test_progress_is_told(table):
    seen = []
    catalogue.fetch("toy", progress=lambda *facts: seen.append(facts))
    assert seen[-1] == ("toy.bin", len(CONTENT), len(CONTENT))


def test_an_address_that_is_gone_is_one_line(table):
    with pytest.raises(ConnectionError, match="answered 404"):
        catalogue.fetch("gone")


def test_a_set_without_an_address_says_what_to_place_where(table):
    with pytest.raises(FileNotFoundError, match=r"place toy.bin \(from https://example.org; one file\) into .*byhand"):
        catalogue.fetch("byhand")


def test_an_absent_set_offers_the_fetch(table):
    with pytest.raises(FileNotFoundError, match="data set toy is not here: run `etude data fetch toy`, or place"):
        catalogue.locate("toy")


def test_an_unknown_set_offers_the_nearest_name(table):
    with pytest.raises(ValueError, match="unknown data set 'tyo': did you mean 'toy'"):
        catalogue.locate("tyo")


def test_a_changed_file_is_found_out(table):
    (catalogue.fetch("toy") / "sub" / "toy.bin").write_bytes(b"changed")
    assert catalogue.verify("toy") == ["sub/toy.bin differs from the recorded checksum"]


def test_a_set_of_many_files_is_checked_by_its_manifest(table):
    (table / "many" / "deep").mkdir(parents=True)
    (table / "many" / "deep" / "a").write_bytes(CONTENT)
    (table / "many" / "SOURCE.txt").write_text("notes do not count")
    assert catalogue.verify("many") == []
    (table / "many" / "deep" / "a").write_bytes(b"changed")
    assert catalogue.verify("many") == ["some file differs from the recorded manifest"]


def test_etude_data_names_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    assert catalogue.home() == tmp_path


def test_a_folder_of_the_home_that_the_catalogue_does_not_know_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("hello")
    assert catalogue.locate("mine") == tmp_path / "mine"


def test_the_listing_tells_what_is_here(table):
    before = {row["name"]: row["present"] for row in catalogue.list_sets()}
    catalogue.fetch("toy")
    after = {row["name"]: row["path"] for row in catalogue.list_sets()}
    assert before["toy"] is False
    assert after["toy"] == str(table / "toy")


def test_every_set_of_the_real_catalogue_is_complete():
    for row in catalogue.list_sets():
        assert row["home"].startswith("https://"), row
        assert row["licence"], row


def test_the_sets_on_this_machine_have_their_checksums():
    present = [row["name"] for row in catalogue.list_sets() if row["present"]]
    if not present:
        pytest.skip("no public set is here: set ETUDE_DATA")
    assert {name: catalogue.verify(name) for name in present} == {name: [] for name in present}


def test_listing_the_catalogue_does_not_import_torch():
    program = "import sys, etude.data; etude.data.catalogue.list_sets(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
