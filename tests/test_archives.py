"""Archives are read as streams, and those that attack are refused."""

from __future__ import annotations

import os
import stat
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from latent_memory import importers
from latent_memory.errors import InputError
from latent_memory.importers import archives


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "export.zip"


def write(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read_all(path: Path) -> dict[str, bytes]:
    with archives.opened(path) as archive:
        found = {}
        for name in archive.names:
            with archive.open(name) as stream:
                found[name] = stream.read()
        return found


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_all(path)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert "\n" not in told
    return told


def test_members_are_read_as_they_were_written(path: Path) -> None:
    files = {"a/b.json": b"[1]", "c.txt": b"x\ny\n" * 5_000, "größe.json": b""}
    assert read_all(write(path, files)) == files
    assert read_all(write(path, files, zipfile.ZIP_STORED)) == files


def test_folders_are_no_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("a") if hasattr(archive, "mkdir") else archive.writestr("a/", b"")
        archive.writestr("a/b.json", b"[]")
    assert read_all(path) == {"a/b.json": b"[]"}


def test_nothing_is_written_to_disk(path: Path, tmp_path: Path) -> None:
    read_all(write(path, {"a/b.json": b"[1]"}))
    assert [each.name for each in tmp_path.iterdir()] == ["export.zip"]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.json", "a/../../b.json", "a/..", "C:/a.json", "c:a.json", "..\\a.json", "\\\\server\\a.json"],
)
def test_names_that_lead_out_are_refused(path: Path, name: str) -> None:
    assert "leads out of it" in refused(write(path, {"good.json": b"[]", name: b"[]"}))


def test_symbolic_links_are_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("conversations.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert "symbolic link" in refused(path)


def test_encrypted_members_are_refused(path: Path) -> None:
    write(path, {"conversations.json": b"[]"})
    content = bytearray(path.read_bytes())
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + at] |= 1
    path.write_bytes(content)
    assert "encrypted" in refused(path)


def test_a_name_that_occurs_twice_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversations.json", b"[]")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("conversations.json", b"[1]")
    assert "twice" in refused(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_in_leaps_are_refused(path: Path, method: int) -> None:
    assert "packed by method" in refused(write(path, {"a.json": b"[]"}, method))


def test_a_bomb_is_refused_by_what_it_declares(path: Path) -> None:
    assert "unpacks to more than 100 times" in refused(write(path, {"conversations.json": b" " * 100_000_000}))


def test_a_bomb_that_declares_less_unpacks_to_no_more(path: Path) -> None:
    """The header says 10 bytes; whatever comes after them is not taken."""
    write(path, {"conversations.json": b" " * 100_000_000})
    content = bytearray(path.read_bytes())
    for sign, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(sign) + at, 10)
    path.write_bytes(content)
    tracemalloc.start()
    told = refused(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert "cannot be unpacked" in told


def test_a_bomb_of_many_members_is_counted_while_it_is_read(path: Path) -> None:
    """Each member is within the limit, and none was read when all were opened; all together are not."""
    write(path, {f"conversations-{i:03}.json": b" " * 30_000_000 for i in range(4)})
    with archives.opened(path) as archive:
        streams = [archive.open(name) for name in archive.names]
        for stream in streams[:2]:
            assert len(stream.read()) == 30_000_000
        with pytest.raises(InputError, match="unpacks to more than 100 times"):
            streams[2].read()
        with pytest.raises(InputError, match="unpacks to more than 100 times"):
            archive.open("conversations-003.json")


def test_a_member_whose_sum_is_wrong_is_refused(path: Path) -> None:
    write(path, {"conversations.json": b"[1, 2, 3]"}, zipfile.ZIP_STORED)
    content = path.read_bytes().replace(b"[1, 2, 3]", b"[1, 2, 4]")
    path.write_bytes(content)
    assert "cannot be unpacked" in refused(path)


def test_a_member_that_is_no_deflate_stream_is_refused(path: Path) -> None:
    packed = zlib.compress(b"[1, 2, 3]" * 99)[2:-4]
    write(path, {"conversations.json": b"[1, 2, 3]" * 99})
    content = path.read_bytes()
    assert packed in content
    path.write_bytes(content.replace(packed, b"\xff" * len(packed)))
    assert "cannot be unpacked" in refused(path)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_a_zip_that_was_cut_off_is_refused(path: Path, keep: float) -> None:
    content = write(path, {"conversations.json": b"[1, 2, 3]" * 99, "b.json": b"[]"}).read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "cannot be read" in refused(path)


def test_every_bad_zip_is_one_error_of_the_importer_too(path: Path) -> None:
    write(path, {"../conversations.json": b"[]"})
    for on_bad in (None, lambda _: None):
        with pytest.raises(InputError, match="leads out"):
            list(importers.read(path, on_bad=on_bad))
        with pytest.raises(InputError, match="leads out"):
            list(importers.read(path, source="chatgpt", on_bad=on_bad))


# -- directories --------------------------------------------------------------------------------------------


def test_a_directorys_files_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").write_bytes(b"[]")
    (tmp_path / "c.txt").write_bytes(b"c")
    assert read_all(tmp_path) == {"a/b.json": b"[]", "c.txt": b"c"}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_that_lead_out_of_a_directory_are_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "export"
    for folder in (outside, inside):
        folder.mkdir()
    (outside / "secret.json").write_bytes(b'"secret"')
    (inside / "a.json").write_bytes(b"[]")
    (inside / "link.json").symlink_to(outside / "secret.json")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "dangling.json").symlink_to(inside / "missing")
    (inside / "same.json").symlink_to(inside / "a.json")
    os.mkfifo(inside / "pipe.json")
    assert read_all(inside) == {"a.json": b"[]", "same.json": b"[]"}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_file_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "export"
    inside.mkdir()
    (tmp_path / "secret.json").write_bytes(b'"secret"')
    (inside / "a.json").write_bytes(b"[]")
    with archives.opened(inside) as archive:
        (inside / "a.json").unlink()
        (inside / "a.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(InputError, match="not a file in it"):
            archive.open("a.json")
