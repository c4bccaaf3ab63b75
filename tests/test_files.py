"""Files that are whole or not there, and private from their first byte."""

import os
import stat
import threading

import pytest

from portretry_udev import files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_is_private_from_its_first_byte(tmp_path, monkeypatch):
    """At no moment can anybody else read it, whatever the umask and the old file's mode."""
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(stat.S_IMODE(os.fstat(fd).st_mode)))
    secret = tmp_path / "key"
    secret.write_bytes(b"old")
    secret.chmod(0o644)
    before = os.umask(0)
    try:
        files.write(secret, b"new")
    finally:
        os.umask(before)
    assert secret.read_bytes() == b"new"
    assert mode(secret) == 0o600
    assert seen[0] == 0o600


def test_a_public_file_is_for_all(tmp_path):
    """Whatever the umask takes away."""
    before = os.umask(0o077)
    try:
        files.write(tmp_path / "rule", b"x", files.PUBLIC)
    finally:
        os.umask(before)
    assert mode(tmp_path / "rule") == 0o644


def test_folders_are_made(tmp_path):
    """All that are missing; what is there keeps its mode."""
    tmp_path.chmod(0o711)
    files.write(tmp_path / "a" / "b" / "c", b"x")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"
    assert mode(tmp_path) == 0o711
    assert mode(tmp_path / "a" / "b") == (0o755 if os.geteuid() == 0 else 0o700)


def test_a_reader_never_sees_half_of_it(tmp_path):
    """Always the old one or the new one."""
    path = tmp_path / "state"
    contents = [b"a" * 50_000, b"b" * 70_000]
    files.write(path, contents[0])
    ended = threading.Event()
    seen = set()

    def read():
        while not ended.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(100):
        files.write(path, contents[n % 2])
    ended.set()
    reader.join()
    assert seen
    assert seen <= set(contents)


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """A full disk, for one."""
    path = tmp_path / "state"
    files.write(path, b"old")

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_not_followed(tmp_path):
    """What a link leads to is not ours."""
    (tmp_path / "other").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    files.write(tmp_path / "link", b"ours")
    assert (tmp_path / "other").read_bytes() == b"theirs"
    assert not (tmp_path / "link").is_symlink()


def test_what_need_not_last_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    """Who writes each minute wears no SD card out; it is there whole all the same."""
    monkeypatch.setattr(os, "fsync", lambda _fd: pytest.fail("it waits for the disk"))
    files.write(tmp_path / "numbers", b"1", files.PUBLIC, lasting=False)
    assert (tmp_path / "numbers").read_bytes() == b"1"
    assert mode(tmp_path / "numbers") == 0o644
