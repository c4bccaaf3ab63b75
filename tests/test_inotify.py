"""What the kernel tells us about files."""

import errno

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
