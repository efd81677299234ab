"""Downloads against a server on this machine: resume, broken connections, corruption, archives that mean harm."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asrkit.data import download as module
from asrkit.data.download import ARCHIVES, Archive, download, fetch, main, unpack
from asrkit.errors import AsrkitError


@dataclass
class Site:
    """What the server gives, how badly, and what it was asked for."""

    root: str = ""
    content: bytes = b""
    ranges: bool = True
    break_after: int | None = None
    """Each answer stops after so many bytes, though its header promises all."""
    status: int | None = None
    name: str = "part.tar.gz"
    asked: list[int] = field(default_factory=list)
    """First byte of each request."""

    @property
    def url(self) -> str:
        return f"{self.root}/{self.name}"


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            state.asked.append(first)
            total = len(state.content)
            if state.status:
                self.send_error(state.status)
                return
            if state.ranges and first >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not state.ranges:
                first = 0
            self.send_response(206 if state.ranges else 200)
            if state.ranges:
                self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
            self.send_header("Content-Length", str(total - first))
            self.end_headers()
            self.wfile.write(state.content[first:][: state.break_after])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.root = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def tar_of(files: dict[str, bytes], *, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()


PART = {
    "LibriSpeech/README.TXT": b"about",
    "LibriSpeech/dev-clean/1/2/1-2.trans.txt": b"1-2-0000 HELLO\n",
    "LibriSpeech/dev-clean/1/2/1-2-0000.flac": bytes(range(256)) * 40,
}


def archive_of(site: Site) -> Archive:
    return Archive(site.url, hashlib.sha256(site.content).hexdigest(), "LibriSpeech/dev-clean")


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_brings_the_folder_and_nothing_else(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    told: list[tuple[int, int | None]] = []
    assert download(archive_of(site), tmp_path, advance=lambda done, total: told.append((done, total)))
    assert files_in(tmp_path) == PART
    assert told[0] == (0, len(site.content))
    assert told[-1] == (len(site.content), len(site.content))
    assert not download(archive_of(site), tmp_path)
    assert site.asked == [0]


def test_second_part_joins_the_first(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    download(archive_of(site), tmp_path)
    other = {name.replace("dev-clean", "test-clean"): content for name, content in PART.items()}
    site.content = tar_of(other)
    digest = hashlib.sha256(site.content).hexdigest()
    download(Archive(site.url, digest, "LibriSpeech/test-clean"), tmp_path)
    assert files_in(tmp_path) == PART | other


def test_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    (tmp_path / "part.tar.gz.part").write_bytes(site.content[:100])
    assert fetch(archive_of(site), tmp_path).read_bytes() == site.content
    assert site.asked == [100]


def test_broken_connections_are_taken_up_again(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    site.break_after = len(site.content) // 9
    assert fetch(archive_of(site), tmp_path, pause=0.0).read_bytes() == site.content
    # More breaks than failures are allowed in a row: progress resets the count.
    assert len(site.asked) > module._ATTEMPTS
    assert site.asked == sorted(set(site.asked))


def test_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.content, site.ranges = tar_of(PART), False
    (tmp_path / "part.tar.gz.part").write_bytes(b"x" * 100)
    assert fetch(archive_of(site), tmp_path).read_bytes() == site.content


def test_whole_part_asks_for_nothing_more(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    (tmp_path / "part.tar.gz.part").write_bytes(site.content)
    assert fetch(archive_of(site), tmp_path).read_bytes() == site.content


@pytest.mark.parametrize("length", [50, 100_000])
def test_part_of_another_file_is_thrown_away(site: Site, tmp_path: Path, length: int) -> None:
    site.content = tar_of(PART)
    (tmp_path / "part.tar.gz.part").write_bytes(b"z" * length)
    assert fetch(archive_of(site), tmp_path, pause=0.0).read_bytes() == site.content
    assert site.asked[-1] == 0


def test_archive_put_there_by_hand_needs_no_network(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    (tmp_path / "part.tar.gz").write_bytes(site.content)
    assert download(archive_of(site), tmp_path)
    assert files_in(tmp_path) == PART
    assert site.asked == []


def test_corruption_is_refused_and_removed(site: Site, tmp_path: Path) -> None:
    site.content = tar_of(PART)
    archive = archive_of(site)
    site.content = site.content[:-1] + b"?"
    with pytest.raises(AsrkitError, match="SHA-256"):
        download(archive, tmp_path)
    assert files_in(tmp_path) == {}


def test_offline_is_told_in_one_line_and_keeps_the_part(tmp_path: Path) -> None:
    archive = Archive("http://127.0.0.1:9/part.tar.gz", "0" * 64, "LibriSpeech/dev-clean")
    (tmp_path / "part.tar.gz.part").write_bytes(b"there")
    with pytest.raises(AsrkitError, match="check the network") as caught:
        download(archive, tmp_path, pause=0.0)
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == {"part.tar.gz.part": b"there"}


def test_a_silent_server_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing, as some firewalls do."""
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        archive = Archive(f"http://127.0.0.1:{silent.getsockname()[1]}/part.tar.gz", "0" * 64, "LibriSpeech/dev-clean")
        with pytest.raises(AsrkitError, match=r"could not be fetched: timed out .*check the network"):
            download(archive, tmp_path, pause=0.0)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, module._ATTEMPTS)])
def test_server_errors(site: Site, tmp_path: Path, status: int, requests: int) -> None:
    site.status = status
    with pytest.raises(AsrkitError, match=str(status)):
        download(archive_of(site), tmp_path, pause=0.0)
    assert len(site.asked) == requests


def test_full_disk_is_told_before_the_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.content = tar_of(PART)
    usage = module.shutil.disk_usage(tmp_path)._replace(free=len(site.content) - 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(AsrkitError, match="are needed"):
        download(archive_of(site), tmp_path)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("name", ["../outside", "LibriSpeech/../../outside", "/tmp/asrkit-outside"])
def test_archive_stays_inside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.tar.gz").write_bytes(tar_of(PART | {name: b"harm"}))
    with pytest.raises(AsrkitError, match="would write to"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "in", "LibriSpeech/dev-clean")
    assert files_in(tmp_path / "in") == {}
    assert not (tmp_path / "outside").exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_of(PART, links={"LibriSpeech/dev-clean/link": "/etc/passwd"}))
    unpack(tmp_path / "a.tar.gz", tmp_path / "in", "LibriSpeech/dev-clean")
    assert files_in(tmp_path / "in") == PART


@pytest.mark.parametrize(
    "content",
    [b"", b"not an archive", tar_of(PART)[:150], tar_of({"other/file": b""})],
    ids=["empty", "not an archive", "cut short", "another folder"],  # an archive's bytes hold the time of its making
)
def test_useless_archive_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(AsrkitError, match=r"cannot be unpacked|holds no folder"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "in", "LibriSpeech/dev-clean")
    assert files_in(tmp_path) == {"a.tar.gz": content}


def test_command(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    site.content = tar_of(PART)
    monkeypatch.setitem(ARCHIVES, "dev-clean", archive_of(site))
    assert main(["--corpus-dir", str(tmp_path), "dev-clean"]) == 0
    assert files_in(tmp_path) == PART
    assert main(["--corpus-dir", str(tmp_path), "dev-clean", "dev-claen"]) == 2
    assert capsys.readouterr().err == "unknown part 'dev-claen' (did you mean 'dev-clean'?)\n"


def test_a_folder_that_cannot_be_is_told_in_a_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["--corpus-dir", "/dev/null/x", "dev-clean"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("Not a directory")


def test_a_language_model_is_a_file_that_stays_as_it_is(site: Site, tmp_path: Path) -> None:
    site.name, site.content = "4-gram.arpa.gz", bytes(range(256)) * 30
    archive = Archive(site.url, hashlib.sha256(site.content).hexdigest(), "lm/4-gram.arpa.gz")
    (tmp_path / "4-gram.arpa.gz.part").write_bytes(site.content[:70])
    assert download(archive, tmp_path)
    assert files_in(tmp_path) == {"lm/4-gram.arpa.gz": site.content}
    assert not download(archive, tmp_path)
    assert site.asked == [70]


def test_a_file_needs_no_room_for_unpacking(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.name, site.content = "words.txt", b"x" * 1000
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    assert download(Archive(site.url, hashlib.sha256(site.content).hexdigest(), "lm/words.txt"), tmp_path)


def test_checksums_are_torchaudios() -> None:
    """Read from torchaudio's source, since its datasets may go with a later version."""
    import torchaudio

    folder = Path(torchaudio.__file__).parent / "datasets"
    published = "".join((folder / f"{name}.py").read_text() for name in ("librispeech", "librilight_limited"))
    speech = [archive for archive in ARCHIVES.values() if archive.packed]
    assert len(speech) == 8
    for archive in speech:
        assert archive.sha256 in published
        assert archive.file_name in published or archive.file_name.removesuffix(".tar.gz") in published
