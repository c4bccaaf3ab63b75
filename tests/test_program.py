"""The service runs a program by its lasting name, and none that somebody else could change."""

import os
import pwd
from pathlib import Path

import pytest

from portretry_udev import program


def executable(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_is_named_by_what_stays(tmp_path, monkeypatch):
    """A link in /usr/local/bin outlives a move of the environment that it leads to."""
    real = executable(tmp_path / "pipx/venvs/portretry-udev/bin/portretry-udev")
    python = str(real.with_name("python"))
    links = tmp_path / "bin"
    links.mkdir()
    link = links / "portretry-udev"

    assert program.find(str(real), python, [links]) == real
    assert program.find("/lib/portretry_udev/__main__.py", python, [links]) == real
    link.symlink_to(real)
    assert program.find(str(link), python, []) == link
    assert program.find(str(real), python, [links]) == link
    monkeypatch.chdir(real.parent)
    assert program.find("./portretry-udev", python, []) == real
    monkeypatch.setenv("PATH", str(links))
    assert program.find("portretry-udev", python, []) == link
    assert program.find("/usr/bin/pytest", str(tmp_path / "python"), [links]) is None


def test_what_others_can_change_is_not_for_root(tmp_path, monkeypatch):
    """Whoever can write to it, or to a folder above it, is root at the next start."""
    monkeypatch.setattr(program, "_PASSING", ())
    monkeypatch.setattr(program, "_HOMES", ())
    script = executable(tmp_path / "bin" / "portretry-udev")
    assert program.dangers([Path("/bin/sh")]) == []
    if os.geteuid() == 0:
        assert program.dangers([script]) == []
        script.parent.chmod(0o777)
        who = "everybody"
    else:
        who = "by "  # the tests' user, who owns it

    (danger,) = program.dangers([script, script])

    assert who in danger
    assert "become root" in danger


def test_a_group_counts_by_its_members(tmp_path, monkeypatch):
    """Debian's /usr/local belongs to the group staff, which has none."""
    monkeypatch.setattr(program, "_PASSING", ())
    monkeypatch.setattr(program, "_HOMES", ())
    script = executable(tmp_path / "portretry-udev")
    real = script.lstat()
    members = []

    def lstat(path):
        values = list(real) if path == script else [0o40755, 0, 0, 1, 0, 0, 0, 0, 0, 0]
        if path == script:
            values[0], values[4], values[5] = 0o100775, 0, 50
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(program, "_members", lambda gid: members if gid == 50 else [])
    monkeypatch.setattr(program.grp, "getgrgid", lambda _gid: type("Group", (), {"gr_name": "staff"}))

    assert program.dangers([script]) == []
    members.append("pi")
    (danger,) = program.dangers([script])
    assert "the group staff (pi)" in danger


def test_the_members_of_a_group_are_those_listed_and_those_born_into_it():
    """By /etc/group and /etc/passwd of this machine: every user's own group has that user in it."""
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    assert users
    for user in users[:5]:
        assert user.pw_name in program._members(user.pw_gid)
    assert program._members(0x7FFFFFF0) == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/home/pi/oprint/bin/portretry-udev", "is in a home"),
        ("/root/.local/bin/portretry-udev", "is in a home"),
        ("/tmp/venv/bin/portretry-udev", "gone with the next boot"),
        ("/opt/my printer/portretry-udev", "mean something else"),
    ],
)
def test_where_a_service_has_no_program(path, why):
    """Each with its reason; what a link leads to counts as well."""
    (danger,) = program.dangers([Path(path)])
    assert why in danger


def test_a_link_to_somewhere_unsafe_is_unsafe(tmp_path, monkeypatch):
    """A pipx of a user, and a link in /usr/local/bin, for one."""
    monkeypatch.setattr(program, "_PASSING", ())
    monkeypatch.setattr(program, "_writer", lambda _path: "")
    link = tmp_path / "portretry-udev"
    link.symlink_to("/home/pi/venv/bin/portretry-udev")

    (danger,) = program.dangers([link])

    assert "/home/pi/venv" in danger
