"""What the kernel tells us about files."""

import ctypes
import errno
import select

import pytest

from portretry_udev import inotify
from portretry_udev.inotify import Inotify


def test_tells_opens_closes_and_names(tmp_path):
    """Opens and closes of a file, and names made and deleted in a folder, are heard in order."""
    node = tmp_path / "node"
    node.write_text("")
    with Inotify() as ino:
        on_node = ino.add(node, inotify.OPEN | inotify.CLOSE_WRITE | inotify.CLOSE_NOWRITE)
        in_folder = ino.add(tmp_path, inotify.CREATE | inotify.DELETE)
        with node.open():
            assert [(e.wd, e.mask) for e in ino.read()] == [(on_node, inotify.OPEN)]
        (tmp_path / "more").write_text("")
        (tmp_path / "more").unlink()
        assert [(e.wd, e.mask, e.name) for e in ino.read()] == [
            (on_node, inotify.CLOSE_NOWRITE, ""),
            (in_folder, inotify.CREATE, "more"),
            (in_folder, inotify.DELETE, "more"),
        ]
        assert ino.read() == []


def test_a_watch_can_end_before_it_is_removed(tmp_path):
    """The file of a watch is gone: that is told, and removing the watch is no error."""
    node = tmp_path / "node"
    node.write_text("")
    with Inotify() as ino:
        wd = ino.add(node, inotify.OPEN)
        node.unlink()
        assert [e.mask for e in ino.read()] == [inotify.IGNORED]
        ino.remove(wd)


def test_its_parts_share_one_instance(tmp_path):
    """Each has its own watches and hears of these alone, whichever of them is read first."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("")
    other.write_text("")
    with Inotify() as ino:
        first, second = ino.part(), ino.part()
        here, there = first.add(one, inotify.OPEN), second.add(other, inotify.OPEN)
        with one.open(), other.open():
            assert [e.wd for e in first.read()] == [here]
        assert ino.waiting(), "what the other one has not read"
        assert [e.wd for e in second.read()] == [there]
        assert not ino.waiting()
        first.remove(here)
        assert [e.mask for e in first.read()] == [inotify.IGNORED]
        assert second.read() == []


def test_none_is_left(tmp_path, monkeypatch):
    """Then it is deaf: a watch is refused with the cure, nothing is heard, and waiting for it is in vain."""

    def none_left(_flags):
        ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(inotify._libc, "inotify_init1", none_left)
    with Inotify() as ino:
        with pytest.raises(OSError, match="max_user_instances"):
            ino.add(tmp_path, inotify.CREATE)
        (tmp_path / "new").write_text("")
        assert ino.part().read() == []
        poll = select.poll()
        poll.register(ino.fileno(), select.POLLIN)
        assert poll.poll(0) == []


def test_a_missing_path_is_an_error_with_its_name(tmp_path):
    """What cannot be watched raises the kernel's errno and names the path."""
    with Inotify() as ino, pytest.raises(FileNotFoundError) as caught:
        ino.add(tmp_path / "absent", inotify.OPEN)
    assert caught.value.errno == errno.ENOENT
    assert "absent" in str(caught.value)


def test_close_twice_is_harmless():
    """A second close does not close somebody else's descriptor."""
    ino = Inotify()
    ino.close()
    ino.close()
    with pytest.raises(OSError, match="Bad file"):
        ino.read()
