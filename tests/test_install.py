"""Our files come whole or not at all, say so before, and go without a trace; nobody else's are touched."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from portretry_udev import activation, cli, files, install, installation, program, uninstall, unit
from portretry_udev.activation import Machine, Outcome
from portretry_udev.install import InstallTrouble, Kind, Layout
from portretry_udev.udev_rule import UNIT, rules_for

REPOSITORY = Path(__file__).parents[1]
PROGRAM = Path("/opt/portretry-udev/bin/portretry-udev")
BY_ID = "/dev/serial/by-id/usb-M_Board_CZPX1-if00"
RULE = "etc/udev/rules.d/99-portretry.rules"
PRINTERS = "etc/udev/rules.d/99-portretry-printers.rules"
SERVICE = "etc/systemd/system/portretry-udev.service"
EXAMPLE = "etc/portretry-udev/config.example.toml"
CONFIG = "etc/portretry-udev/config.toml"
SHARED = {"etc", "etc/udev", "etc/udev/rules.d", "etc/systemd", "etc/systemd/system"}  # folders not our own

RUNNING = Machine(
    udevd=True, systemd=True, has_systemd=True, known=True, active=True, enabled=True
)  # fmt: skip
BARE = Machine(udevd=True, systemd=True, has_systemd=True)


@pytest.fixture(autouse=True)
def _tmp_is_any_folder(monkeypatch):
    """The tests' folders may be in /tmp, which a service has of its own."""
    monkeypatch.setattr(unit, "TEMPORARY", ())


class Commands:
    """Whoever runs commands, as a list of what was asked for; some fail."""

    def __init__(self):
        self.ran = []
        self.failing = {}

    def __call__(self, command):
        line = " ".join(command)
        self.ran.append(line)
        return next(
            (outcome for start, outcome in self.failing.items() if line.startswith(start)), Outcome(0)
        )


@pytest.fixture
def root():
    with tempfile.TemporaryDirectory(prefix="root-") as folder:  # short: a socket's path has 107 bytes
        yield Path(folder)


@pytest.fixture
def commands(monkeypatch):
    """No test gets at this machine's udev and systemd."""
    commands = Commands()
    monkeypatch.setattr(activation, "run", commands)
    return commands


@pytest.fixture
def here(commands, monkeypatch):
    """The folder is this machine, as far as the commands can see: call it with what is at work there."""

    def be(machine):
        monkeypatch.setattr(installation, "is_here", lambda _layout: True)
        monkeypatch.setattr(activation, "look", lambda _run: machine)
        monkeypatch.setattr(activation, "serial_devices", lambda _ports=(): [Path("/sys/devices/usb1/1-1")])
        monkeypatch.setattr(program, "find", lambda *_: PROGRAM)
        monkeypatch.setattr(program, "dangers", lambda _paths: [])
        return commands

    return be


def configure(root, *, port=BY_ID, name="mk3", key=True):
    path = root / CONFIG
    path.parent.mkdir(parents=True, exist_ok=True)
    if key:
        files.write(path.with_name(f"{name}.key"), b"K3Y-0123456789abcdef\n")
    path.write_text(table(root, name, port))


def table(root, name, port):
    """A printer, as it stands in a configuration."""
    key = root / "etc/portretry-udev" / f"{name}.key"
    return (
        f'[printers.{name}]\noctoprint = "http://127.0.0.1:5000"\nport = "{port}"\napi_key_file = "{key}"\n'
    )


def run(*arguments):
    """A command in this process; stdout and stderr apart."""
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def ok(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def tree(root):
    """Everything below a folder: what it is, and when it was written."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_ino)
        for path in sorted(root.rglob("*"))
    }


def contents(root):
    return {name for name in tree(root) if not (root / name).is_dir()}


def said(result):
    """Lines that were broken at 80 columns, as one."""
    return re.sub(r"\s+", " ", result.stdout + result.stderr)


# -- install ----------------------------------------------------------------------------------------------
def test_a_dry_run_shows_all_and_writes_nothing(root):
    """Each file is named; the folder is as it was."""
    result = ok("install", "--root", root, "--dry-run")

    for name in (RULE, SERVICE, EXAMPLE):
        assert f"new        {root / name}" in result.stdout
    assert tree(root) == {}


def test_what_is_installed_is_what_was_shown(root):
    """Readable by all, whatever the umask."""
    before = os.umask(0o077)
    try:
        ok("install", "--root", root, "--yes")
    finally:
        os.umask(before)

    assert contents(root) == {RULE, SERVICE, EXAMPLE}
    for name in (RULE, SERVICE, EXAMPLE):
        assert (root / name).stat().st_mode & 0o777 == 0o644
    assert (root / RULE).read_bytes() == (REPOSITORY / "udev" / "99-portretry.rules").read_bytes()


def test_a_second_time_changes_nothing_and_says_so(root):
    """No file is written again, not even with the same content."""
    configure(root)
    ok("install", "--root", root, "--yes")
    before = tree(root)

    result = ok("install", "--root", root)  # there is nothing to ask about, so nobody is asked

    assert "nothing to do" in result.stderr
    assert "new" not in result.stdout
    assert tree(root) == before


def test_the_unit_runs_the_real_program(root):
    """Everything else in it is as it was shipped."""
    ok("install", "--root", root, "--program", PROGRAM, "--yes")

    shipped = (REPOSITORY / "systemd" / UNIT).read_text().splitlines()
    there = (root / SERVICE).read_text().splitlines()
    assert [(a, b) for a, b in zip(shipped, there, strict=True) if a != b] == [
        ("ExecStart=/usr/bin/portretry-udev watch", f"ExecStart={PROGRAM} watch")
    ]


@pytest.mark.parametrize("path", ["bin/portretry-udev", "/opt/my printer/run", "/opt/50%/run", "/opt/a\nb"])
def test_a_program_that_a_unit_would_misread_is_refused(root, path):
    """Blanks and % mean something else there; a relative path nothing."""
    result = run("install", "--root", root, "--program", path, "--yes")

    assert result.exit_code == 2
    assert tree(root) == {}


def test_configured_printers_get_their_rules(root):
    """Word for word what `rules_for` makes of them, and again when the configuration has changed."""
    configure(root)
    ok("install", "--root", root, "--yes")
    (printer,) = installation_printers(root)
    assert (root / PRINTERS).read_text() == rules_for([printer])

    configure(root, port=BY_ID.replace("CZPX1", "CZPX2"))
    result = ok("install", "--root", root, "--yes")

    assert "CZPX2" in (root / PRINTERS).read_text()
    assert re.search(r'^ +-.*SYMLINK=="serial/by-id/usb-M_Board_CZPX1-if00"', result.stdout, re.MULTILINE)
    # It says itself that changes are lost; a copy of each would only be in the way.
    assert not list(root.rglob("*~*"))


def installation_printers(root):
    from portretry_udev.config import survey  # noqa: PLC0415

    return survey({"config": str(root / CONFIG)}, {}).printers


def test_what_a_configuration_needs_of_the_unit_comes_as_a_drop_in(root, here):
    """It is gone from the drop-in when it is needed no longer; a service that runs is told each time."""
    commands = here(BARE)
    configure(root)
    dropin = root / f"{SERVICE}.d" / "configuration.conf"
    ok("install", "--root", root, "--yes")
    assert not dropin.exists()

    text = (root / CONFIG).read_text()
    (root / CONFIG).write_text(f'state_dir = "/srv/state"\n{text}')
    ok("install", "--root", root, "--yes")
    assert 'ReadWritePaths="-/srv/state"' in dropin.read_text().splitlines()
    assert dropin.read_text().startswith("# portretry-udev: ")

    here(RUNNING)
    commands.ran.clear()
    configure(root)
    ok("install", "--root", root, "--yes")
    assert [line for line in dropin.read_text().splitlines() if not line.startswith("#")] == []
    assert commands.ran == ["systemctl daemon-reload", f"systemctl restart {UNIT}"]
    assert "nothing to do" in ok("install", "--root", root).stderr
    assert not list(dropin.parent.glob("*~*"))

    ok("uninstall", "--root", root, "--yes")
    assert not dropin.parent.exists()


def test_the_numbers_of_ports_that_are_here(tmp_path):
    """A driver unlike most has one that the unit does not allow; what is no device has none."""
    (tmp_path / "file").touch()
    assert activation.majors(["/dev/null", str(tmp_path / "file"), "/dev/no-such-port"]) == {1}


def test_a_printer_that_no_rule_can_name_is_told_and_the_others_get_theirs(root):
    """A port under a folder of one's own is none that udev makes."""
    configure(root)
    with (root / CONFIG).open("a") as file:
        file.write(table(root, "odd", "/srv/tty"))

    result = ok("install", "--root", root, "--yes")

    assert "printer odd: udev makes no /srv/tty" in said(result)
    assert "watches" in said(result)
    text = (root / PRINTERS).read_text()
    assert "printer-mk3" in text
    assert "odd" not in text


def test_what_was_changed_by_hand_is_shown_and_kept(root):
    """With its mode; a second change does not overwrite the first one's copy; the same is not kept twice."""
    ok("install", "--root", root, "--yes")
    rule = root / RULE
    for text in ("# mine\n", "# mine, better\n", "# mine\n"):
        rule.write_text(text)
        rule.chmod(0o640)
        result = ok("install", "--root", root, "--yes")
        assert f"    -{text.strip()}\n" in result.stdout
        assert "kept" in result.stdout

    kept = sorted(rule.parent.glob("*~*"))
    assert [path.name for path in kept] == [f"{rule.name}~", f"{rule.name}~2"]
    assert [path.read_text() for path in kept] == ["# mine\n", "# mine, better\n"]
    assert kept[0].stat().st_mode & 0o777 == 0o640
    assert rule.read_bytes() == (REPOSITORY / "udev" / rule.name).read_bytes()


def test_what_steers_a_terminal_is_not_shown(root):
    """A difference shows words of others."""
    rule = root / RULE
    rule.parent.mkdir(parents=True)
    rule.write_bytes(b"# \x1b[2J\xff mine\n")

    result = ok("install", "--root", root, "--yes")

    assert "\x1b[2J" not in result.stdout
    assert "mine" in result.stdout


def test_a_link_is_replaced_and_what_it_leads_to_stays(root):
    """Somebody keeps the rule elsewhere: the link is kept, too."""
    (root / "mine.rules").write_text("# mine\n")
    rule = root / RULE
    rule.parent.mkdir(parents=True)
    rule.symlink_to(root / "mine.rules")

    ok("install", "--root", root, "--yes")

    assert not rule.is_symlink()
    assert (root / "mine.rules").read_text() == "# mine\n"
    assert rule.with_name(f"{rule.name}~").readlink() == root / "mine.rules"


def test_a_masked_service_is_told_once(root, here):
    """By its link, or, masked elsewhere (`systemctl mask --runtime`), by what systemd says of it."""
    here(Machine(udevd=True, systemd=True, has_systemd=True, known=True, masked=True))
    configure(root)
    assert said(ok("install", "--root", root, "--yes")).count("you have switched it off") == 1

    (root / SERVICE).unlink()
    (root / SERVICE).symlink_to("/dev/null")
    assert said(ok("install", "--root", root, "--yes")).count("you have switched it off") == 1


@pytest.mark.parametrize("name", [RULE, SERVICE])
def test_a_link_to_dev_null_is_a_persons_word(root, name, here):
    """Rules and services are switched off so; neither is written, nor started, and it is said."""
    commands = here(BARE)
    configure(root)
    path = root / name
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null")

    result = ok("install", "--root", root, "--yes")

    assert path.is_symlink()
    assert f"{path} is a link to /dev/null: you have switched it off" in said(result)
    assert any("enable" in line for line in commands.ran) is (name == RULE)


def test_an_empty_unit_is_masked_too(root):
    """systemd.unit(5) says so."""
    masked = root / SERVICE
    masked.parent.mkdir(parents=True)
    masked.touch()

    result = ok("install", "--root", root, "--yes")

    assert masked.read_bytes() == b""
    assert "switched it off" in said(result)


def test_what_a_package_has_brought_is_not_doubled(root):
    """The same in /usr/lib is enough."""
    ok("install", "--root", root, "--vendor", "--yes")
    before = tree(root)

    result = ok("install", "--root", root)

    assert result.stdout.count("packaged") == 3
    assert tree(root) == before


def test_what_counts_instead_of_a_packages_file_is_told(root):
    """From either side: a file in /etc stands in for the one in /usr/lib."""
    ok("install", "--root", root, "--vendor", "--yes")
    (root / "usr/lib/udev/rules.d/99-portretry.rules").write_text("# an older one\n")
    result = ok("install", "--root", root, "--yes")
    assert f"{root / RULE} counts instead of the package's {root}/usr/lib/udev" in said(result)

    result = ok("install", "--root", root, "--vendor", "--yes")
    assert f"{root / RULE} counts instead of {root}/usr/lib/udev" in said(result)


def test_packagers_get_usr_lib_and_nothing_of_one_machine(root):
    """Neither this machine's program nor anybody's printers."""
    configure(root)

    ok("install", "--root", root, "--vendor", "--yes")

    assert {name for name in contents(root) if name.startswith("usr")} == {
        "usr/lib/udev/rules.d/99-portretry.rules",
        "usr/lib/systemd/system/portretry-udev.service",
        "usr/share/doc/portretry-udev/examples/config.example.toml",
    }
    assert not (root / PRINTERS).exists()
    assert "ExecStart=/usr/bin/portretry-udev watch" in (root / "usr/lib/systemd/system" / UNIT).read_text()


def test_another_root_is_never_this_machine(root, commands, tmp_path):
    """No reload, no trigger, and no link that leads back here."""
    configure(root)
    ok("install", "--root", root, "--yes")
    ok("uninstall", "--root", root, "--yes")
    assert commands.ran == []

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(root / "etc" / "udev")
    (root / "etc" / "udev").symlink_to(elsewhere)
    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 73
    assert "leads out of" in result.stderr
    assert list(elsewhere.iterdir()) == []


def test_nothing_is_started_without_a_configuration(root, here):
    """The files are put in place, and it is said what is missing."""
    commands = here(BARE)

    result = ok("install", "--root", root, "--yes")

    assert not any("enable" in line or " start" in line for line in commands.ran)
    assert "sudo portretry-udev setup" in result.stderr
    assert not (root / CONFIG).exists()


def test_with_a_configuration_it_runs(root, here):
    """First who reads the files is told, then it is started; each command is shown with its reason."""
    commands = here(BARE)
    configure(root)

    result = ok("install", "--root", root, "--yes")

    assert commands.ran == [
        "udevadm control --reload",
        "udevadm trigger --action=change --settle /sys/devices/usb1/1-1",
        "systemctl daemon-reload",
        "systemctl enable --now portretry-udev.service",
    ]
    for command in commands.ran:
        assert command in said(result)
    assert "so that systemd reads the unit" in result.stdout


def test_a_dry_run_runs_nothing(root, here):
    """The commands are shown all the same."""
    commands = here(BARE)
    configure(root)
    before = tree(root)

    result = ok("install", "--root", root, "--dry-run")

    assert "would run  systemctl enable --now portretry-udev.service" in result.stdout
    assert commands.ran == []
    assert tree(root) == before


def test_no_start_starts_nothing(root, here):
    """Files and those who read them, but nothing that runs."""
    commands = here(BARE)
    configure(root)

    ok("install", "--root", root, "--no-start", "--yes")

    assert commands.ran[-1] == "systemctl daemon-reload"
    assert (root / SERVICE).exists()


def test_a_mistake_in_the_configuration_ends_it_before_anything(root, here):
    """All of them are told, and nothing is written."""
    commands = here(BARE)
    configure(root)
    (root / CONFIG).write_text('[printers.a]\noctoprint = "ftp://x"\n[printers.b]\nport = "AUTO"\n')
    before = tree(root)

    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 78
    assert "printers.a.octoprint" in result.stderr
    assert "printers.b.port" in result.stderr
    assert (tree(root), commands.ran) == (before, [])


def test_without_its_key_the_service_is_not_started(root, here):
    """It would only fail: what is missing is told instead, and the files are there."""
    commands = here(BARE)
    configure(root, key=False)

    result = ok("install", "--root", root, "--yes")

    assert "mk3.key" in result.stderr
    assert "systemctl enable --now" in result.stderr
    assert not any("enable" in line for line in commands.ran)
    assert "printer-mk3" in (root / PRINTERS).read_text()


def test_where_there_is_no_systemd_the_rules_are_installed_and_the_command_told(root, here):
    """OpenRC, runit, a container with one process."""
    commands = here(Machine(udevd=True))
    configure(root)

    result = ok("install", "--root", root, "--yes")

    assert not (root / SERVICE).exists()
    assert (root / RULE).exists()
    assert f"  {PROGRAM} watch" in result.stderr.splitlines()
    assert not any("systemctl" in line for line in commands.ran)


def test_where_systemd_sleeps_the_unit_is_installed_for_later(root, here):
    """An image being built in a chroot."""
    commands = here(Machine(has_systemd=True))
    configure(root)

    result = ok("install", "--root", root, "--yes")

    assert (root / SERVICE).exists()
    assert f"  systemctl enable {UNIT}" in result.stderr.splitlines()
    assert "udevd is not at work here" in result.stderr
    assert commands.ran == []


def test_a_command_that_fails_is_told_with_its_words(root, here):
    """And with what is so nevertheless; what depends on it is not tried."""
    commands = here(BARE)
    configure(root)
    commands.failing["systemctl daemon-reload"] = Outcome(1, "Failed to connect to bus: No such file")

    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 69
    assert "`systemctl daemon-reload` failed (1): Failed to connect to bus: No such file" in result.stderr
    assert "the files are in place" in result.stderr
    assert commands.ran[-1] == "systemctl daemon-reload"


def test_a_service_that_does_not_start_is_told_with_where_to_look(root, here):
    """The journal knows why."""
    commands = here(BARE)
    configure(root)
    commands.failing["systemctl enable"] = Outcome(1, "Job for portretry-udev.service failed")

    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 69
    assert f"journalctl -u {UNIT}" in result.stderr


def fail_at(monkeypatch, number, error):
    """The so-manieth file cannot be written; tells what was tried."""
    write, tried = files.write, []

    def failing(path, data, mode=files.PRIVATE):
        tried.append(path)
        if len(tried) == number:
            raise error
        write(path, data, mode)

    monkeypatch.setattr(files, "write", failing)
    return tried


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_leaves_nothing_half_done(root, monkeypatch, number):
    """Whichever file it is: what was written before is taken back, folders too."""
    fail_at(monkeypatch, number, OSError(28, "No space left on device"))

    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 73
    (line,) = [line for line in result.stderr.splitlines() if "No space left on device" in line]
    assert str(root) in line
    assert "nothing was changed" in result.stderr
    assert tree(root) == {}


def test_what_cannot_be_put_back_is_told(root, monkeypatch):
    """A disk that goes read-only in the middle of it: which file is not as it was, and its copy is there."""
    rule = root / RULE
    rule.parent.mkdir(parents=True)
    rule.write_text("# mine\n")

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        fail_at(
            patch, 3, OSError(30, "Read-only file system")
        )  # after the copy of the old rule and the new one
        real = Path.replace
        patch.setattr(
            Path, "replace", lambda path, to: refuse() if path.name.endswith("~") else real(path, to)
        )
        result = run("install", "--root", root, "--yes")

    assert result.exit_code == 73
    assert (
        f"{rule} cannot be put back as it was: Read-only file system; what was there is kept" in result.stderr
    )
    assert "nothing was changed" not in result.stderr
    assert rule.with_name(f"{rule.name}~").read_text() == "# mine\n"


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_what_was_there_is_put_back_when_the_disk_is_full(root, monkeypatch, number):
    """A file and a link that were there are again, and no copy of them is left."""
    rule, service = root / RULE, root / SERVICE
    rule.parent.mkdir(parents=True)
    service.parent.mkdir(parents=True)
    rule.write_text("# mine\n")
    rule.chmod(0o640)
    (root / "mine.service").write_text("[Unit]\n")
    service.symlink_to(root / "mine.service")
    before = set(tree(root))
    tried = fail_at(monkeypatch, number, OSError(28, "No space left on device"))

    result = run("install", "--root", root, "--yes")

    assert (result.exit_code, len(tried) >= number) == (73, True)
    assert set(tree(root)) == before
    assert (rule.read_text(), rule.stat().st_mode & 0o777) == ("# mine\n", 0o640)
    assert service.readlink() == root / "mine.service"


def test_ctrl_c_between_two_files_takes_the_first_back(root, monkeypatch):
    """An interruption is no reason to leave half an installation."""
    fail_at(monkeypatch, 2, KeyboardInterrupt())

    assert run("install", "--root", root, "--yes").exit_code != 0
    assert tree(root) == {}


def test_a_read_only_etc_is_one_line(root, monkeypatch):
    """For root: a matter of the disk, not of rights."""
    fail_at(monkeypatch, 1, OSError(30, "Read-only file system"))

    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 73
    assert f"{root / RULE} cannot be written: Read-only file system" in result.stderr


def test_who_is_not_root_is_told_the_line_to_type(root, here, monkeypatch):
    """Before anything is asked; with all flags."""
    here(BARE)
    configure(root)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = tree(root)

    for command, *flags in (("install", "--no-start", "--yes"), ("install",)):
        result = run(command, "--root", root, *flags)
        assert result.exit_code == 77
        line = f"  sudo {PROGRAM} {' '.join([command, '--root', str(root), *flags])}"
        assert line in [line.removeprefix("portretry-udev: ") for line in result.stderr.splitlines()]
        assert tree(root) == before


def test_a_root_of_ones_own_needs_no_root(root, monkeypatch):
    """Packagers build as themselves; in a folder of somebody else's they are told."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ok("install", "--root", root, "--yes")

    shutil.rmtree(root / "etc")
    monkeypatch.setattr(os, "access", lambda _path, mode, **_: mode != os.W_OK)
    result = run("install", "--root", root, "--yes")
    assert result.exit_code == 77
    assert "is not yours to write" in result.stderr
    assert tree(root) == {}


def test_a_refusal_while_writing_is_a_matter_of_rights_for_all_but_root(root, monkeypatch):
    """EX_NOPERM with the line to type; root, who has all rights, is told what it is: EX_CANTCREAT."""
    for uid, status in ((1000, 77), (0, 73)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda uid=uid: uid)
            fail_at(patch, 1, PermissionError(13, "Permission denied"))
            result = run("install", "--root", root, "--yes")
        assert (uid, result.exit_code) == (uid, status)
        assert ("sudo" in result.stderr) is (uid != 0)


def test_a_configuration_of_ones_own_is_not_for_a_service(root):
    """It reads the one in /etc."""
    result = run("--config", "/tmp/x.toml", "install", "--root", root, "--yes")

    assert result.exit_code == 2
    assert "leave --config out" in result.stderr


def test_something_else_of_that_name_is_left_alone(root):
    """A folder, for one."""
    (root / RULE).mkdir(parents=True)

    result = run("install", "--root", root, "--yes")

    assert result.exit_code == 73
    assert "in the way" in result.stderr
    assert (root / RULE).is_dir()


def test_nothing_is_done_unasked(root):
    """On a terminal it asks, and "n" is no."""
    for answer, status in ((b"n\n", 1), (b"y\n", 0)):
        assert on_a_terminal(answer, "install", "--root", root) == status
        assert bool(contents(root)) is (status == 0)


def test_a_script_means_what_it_says(root):
    """Where nobody can be asked, it is done; what was there before is kept, as ever."""
    (root / RULE).parent.mkdir(parents=True)
    (root / RULE).write_text("# somebody's own\n")

    ok("install", "--root", root)

    assert (root / f"{RULE}~").read_text() == "# somebody's own\n"
    assert (root / SERVICE).exists()
    ok("uninstall", "--root", root)
    assert not (root / SERVICE).exists()


def test_what_only_its_owner_may_read_stays_so(root):
    """A mode that somebody has chosen is kept, of the new file as of the copy of the old one."""
    path = root / "somewhere.toml"
    path.write_text("old\n")
    path.chmod(0o600)

    install.carry_out(install.changes([install.File(path, b"new\n", "it")], root))

    assert path.read_text() == "new\n"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, root / "somewhere.toml~")] == [0o600, 0o600]


def on_a_terminal(answer, *arguments):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "portretry_udev", *map(str, arguments)]
    try:
        os.write(ours, answer)
        done = subprocess.run(command, stdin=theirs, capture_output=True, timeout=20, check=False)
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Go on?" in done.stderr
    return done.returncode


def test_everything_fits_80_columns_but_differences_and_paths(root, here):
    """And says the same in a pipe, without colours."""
    here(Machine(udevd=True, has_systemd=True, masked=True))
    result = ok("install", "--root", root, "--yes")

    for line in (result.stdout + result.stderr).splitlines():
        assert len(line) <= 80 or str(root) in line, line
        assert "\x1b" not in line


def test_root_runs_nothing_unsafe_unless_it_is_named(root, here, monkeypatch):
    """The refusal has the lines to type; --program is the word of somebody who knows better."""
    here(BARE)
    monkeypatch.setattr(
        program, "dangers", lambda _paths: ["/x can be changed by pi, who would so become root"]
    )

    result = run("install", "--root", root, "--yes")
    assert result.exit_code == 78
    assert "by pi" in result.stderr
    assert "  sudo python3 -m venv /opt/portretry-udev" in result.stderr.splitlines()
    assert tree(root) == {}

    result = ok("install", "--root", root, "--yes", "--program", PROGRAM)
    assert "beware" in result.stderr


# -- uninstall --------------------------------------------------------------------------------------------
def test_nothing_of_ours_is_left(root):
    """No file, and no folder that is ours alone."""
    ok("install", "--root", root, "--yes")

    result = ok("uninstall", "--root", root, "--yes")

    assert set(tree(root)) <= SHARED
    assert f"goes       {root / RULE}" in result.stdout
    assert "Nothing to take away" in ok("uninstall", "--root", root).stderr


def test_settings_stay_unless_purged(root):
    """Configuration, keys, remembered holds, and what was kept of files that were changed."""
    ok("install", "--root", root, "--yes")
    configure(root)
    (root / RULE).write_text("# mine\n")
    ok("install", "--root", root, "--yes")
    (root / "var/lib/portretry-udev").mkdir(parents=True)
    (root / "var/lib/portretry-udev/mk3.json").write_text("{}")
    settings = {CONFIG, "etc/portretry-udev/mk3.key", f"{RULE}~", "var/lib/portretry-udev/mk3.json"}

    result = ok("uninstall", "--root", root, "--yes")
    assert contents(root) == settings
    assert "--purge takes it away, too" in result.stdout

    ok("uninstall", "--root", root, "--purge", "--yes")
    assert set(tree(root)) <= {*SHARED, "var", "var/lib"}


def test_a_dry_run_takes_nothing_away(root, here):
    """The service is not ended either."""
    here(BARE)
    configure(root)
    ok("install", "--root", root, "--yes")
    before = tree(root)
    commands = here(RUNNING)
    commands.ran.clear()

    result = ok("uninstall", "--root", root, "--purge", "--dry-run")

    assert "would run  systemctl disable --now portretry-udev.service" in result.stdout
    assert str(root / CONFIG) in result.stdout
    assert (tree(root), commands.ran) == (before, [])


def test_what_is_not_ours_stays_and_is_told(root):
    """Neighbours silently; what has our name or lies in our folders by name."""
    ok("install", "--root", root, "--yes")
    foreign = {
        "etc/udev/rules.d/98-other.rules",
        "etc/udev/rules.d/99-portretry-echo.rules",
        "etc/udev/rules.d/99-portretry.rules.mine~",
        "etc/portretry-udev/notes.txt",
        "etc/portretry-udev/notes.txt~",
        "etc/systemd/system/portretry-udev.service.d/override.conf",
    }
    for name in foreign:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("# somebody else's\n")

    result = ok("uninstall", "--root", root, "--purge", "--yes")

    assert contents(root) == foreign
    for name in foreign - {"etc/udev/rules.d/98-other.rules", "etc/udev/rules.d/99-portretry.rules.mine~"}:
        assert f"stays      {root / name}" in result.stdout
    assert f"{root}/etc/systemd/system/{UNIT}.d stays: there is something in it" in said(result)


def test_what_is_ours_by_its_first_line_goes(root):
    """The rule that is copied by hand, a drop-in of ours, the start at boot, a dead socket."""
    for name in ("etc/udev/rules.d/99-portretry-echo.rules", f"{SERVICE}.d/portretry-user.conf"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("# portretry-udev: as from docs\n")
    link = root / "etc/systemd/system/multi-user.target.wants" / UNIT
    link.parent.mkdir()
    link.symlink_to(f"/etc/systemd/system/{UNIT}")
    runtime = root / "run/portretry-udev"
    runtime.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime / "control.sock"))

    ok("uninstall", "--root", root, "--yes")

    assert contents(root) == set()
    assert not runtime.exists()
    assert not (root / f"{SERVICE}.d").exists()


def test_what_a_power_cut_has_left_goes(root):
    """Half of a file has a name of its own, and is nobody's setting."""
    ok("install", "--root", root, "--yes")
    for name in (RULE, SERVICE, CONFIG):
        path = root / name
        path.with_name(f".{path.name}.0123abcd").write_text("half")
    (root / RULE).with_name(".98-other.rules.0123abcd").write_text("half")

    ok("uninstall", "--root", root, "--yes")

    assert contents(root) == {"etc/udev/rules.d/.98-other.rules.0123abcd"}


def test_a_socket_that_is_answered_is_left_and_told(root):
    """Somebody runs the service by hand."""
    runtime = root / "run/portretry-udev"
    runtime.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime / "control.sock"))
        server.listen()
        result = ok("uninstall", "--root", root, "--yes")
        assert (runtime / "control.sock").exists()
    assert "the service runs" in result.stdout


def test_a_link_to_dev_null_stays_switched_off(root):
    """It is a person's word about the package's file, too."""
    (root / RULE).parent.mkdir(parents=True)
    (root / RULE).symlink_to("/dev/null")

    result = ok("uninstall", "--root", root, "--yes")

    assert (root / RULE).is_symlink()
    assert "stays" in result.stdout


def test_it_ends_first_and_those_who_read_our_files_are_told_after(root, here):
    """The links of udev's, /dev/printer-NAME, go by the trigger."""
    here(BARE)
    configure(root)
    ok("install", "--root", root, "--yes")
    commands = here(RUNNING)
    commands.ran.clear()

    ok("uninstall", "--root", root, "--yes")

    assert commands.ran == [
        "systemctl disable --now portretry-udev.service",
        "udevadm control --reload",
        "udevadm trigger --action=change --settle /sys/devices/usb1/1-1",
        "systemctl daemon-reload",
    ]


def test_udev_forgets_configured_ports_that_are_no_usb_ports(root, here, monkeypatch):
    """What the rules have set on a UART stays in udev's database until it is told of it."""
    here(BARE)
    configure(root, port="/dev/ttyAMA0")
    ok("install", "--root", root, "--yes")
    commands = here(RUNNING)
    monkeypatch.setattr(
        activation, "serial_devices", lambda ports=(): [Path("/sys") / port for port in ports]
    )
    commands.ran.clear()

    ok("uninstall", "--root", root, "--purge", "--yes")

    assert "udevadm trigger --action=change --settle /dev/ttyAMA0" in commands.ran


def test_what_does_not_end_is_not_taken_away(root, here):
    """A service without its unit could not be ended by anybody."""
    here(BARE)
    configure(root)
    ok("install", "--root", root, "--yes")
    commands = here(RUNNING)
    commands.ran.clear()
    commands.failing["systemctl disable"] = Outcome(1, "Access denied")
    before = tree(root)

    result = run("uninstall", "--root", root, "--yes")

    assert result.exit_code == 69
    assert "nothing was taken away" in result.stderr
    assert tree(root) == before
    assert commands.ran == ["systemctl disable --now portretry-udev.service"]


def test_a_packages_service_is_the_packages(root, here):
    """Only what is in /etc goes; the service runs on as the package's unit says."""
    ok("install", "--root", root, "--vendor", "--yes")
    (root / SERVICE).parent.mkdir(parents=True)
    shutil.copy(root / "usr/lib/systemd/system" / UNIT, root / SERVICE)
    packaged = {name for name in contents(root) if name.startswith("usr/")}
    commands = here(RUNNING)

    result = ok("uninstall", "--root", root, "--yes")

    assert contents(root) == packaged
    assert commands.ran == ["systemctl daemon-reload", "systemctl try-restart portretry-udev.service"]
    assert "apt remove portretry-udev" in result.stdout


def test_what_cannot_be_taken_away_is_told_in_one_line(root, monkeypatch):
    """And what is left goes with the next try."""
    ok("install", "--root", root, "--yes")

    def refuse(_path, **_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        result = run("uninstall", "--root", root, "--yes")
    assert result.exit_code == 73
    assert f"{root / RULE} cannot be taken away: Read-only file system" in result.stderr

    ok("uninstall", "--root", root, "--yes")
    assert contents(root) == set()


def test_a_folder_that_is_a_link_is_not_ours(root):
    """Who has put the state elsewhere keeps what is there, also with --purge; a folder is no rule."""
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "mk3.json").write_text("{}")
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/portretry-udev").symlink_to(root / "elsewhere")
    (root / RULE).mkdir(parents=True)

    result = ok("uninstall", "--root", root, "--purge", "--yes")

    assert contents(root) == {"elsewhere/mk3.json"}
    assert (root / RULE).is_dir()
    assert "a link, and not ours" in result.stdout


def test_the_state_of_a_service_with_a_user_of_its_own(root):
    """It is in a private folder of systemd's, behind a link."""
    private = root / "var/lib/private/portretry-udev"
    private.mkdir(parents=True)
    (private / "mk3.json").write_text("{}")
    link = root / "var/lib/portretry-udev"
    link.symlink_to("private/portretry-udev")

    ok("uninstall", "--root", root, "--yes")
    assert (link / "mk3.json").exists()

    ok("uninstall", "--root", root, "--purge", "--yes")
    assert set(tree(root)) == {"var", "var/lib", "var/lib/private"}


def test_a_folder_that_cannot_be_looked_into_is_told(root, monkeypatch):
    """Nothing is taken away by guess."""
    ok("install", "--root", root, "--yes")

    def closed(_path):
        raise OSError(5, "Input/output error")

    before = tree(root)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", closed)
        result = run("uninstall", "--root", root, "--yes")
    assert result.exit_code == 73
    assert "Input/output error" in result.stderr
    assert tree(root) == before


def test_who_is_not_root_is_told_the_line_to_type_here_too(root, here, monkeypatch):
    """Before anything is asked or ended."""
    here(BARE)
    configure(root)
    ok("install", "--root", root, "--yes")
    commands = here(RUNNING)
    commands.ran.clear()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    result = run("uninstall", "--root", root, "--purge")

    assert result.exit_code == 77
    assert f"sudo {PROGRAM} uninstall --root {root} --purge" in result.stderr
    assert commands.ran == []


# -- where our files come from ----------------------------------------------------------------------------
def test_a_wheel_and_a_checkout_have_the_same_files(tmp_path):
    """What pyproject.toml puts into the wheel is what `install` looks for there, and is in the sdist."""
    hatch = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    mapping = hatch["wheel"]["force-include"]
    for source in mapping:
        assert any(f"/{source}".startswith(each) for each in hatch["sdist"]["include"]), source
    package = tmp_path / "portretry_udev"
    shutil.copytree(
        REPOSITORY / "src" / "portretry_udev", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for source, target in mapping.items():
        (tmp_path / target).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / source, tmp_path / target)
    root = tmp_path / "root"
    root.mkdir()
    command = [sys.executable, "-m", "portretry_udev", "install", "--root", str(root), "--yes"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for name, source in ((RULE, "udev/99-portretry.rules"), (EXAMPLE, "config.example.toml")):
        assert (root / name).read_bytes() == (REPOSITORY / source).read_bytes()
    assert (root / SERVICE).exists()
    assert install.is_checkout() == (not (Path(install.__file__).parent / "share").exists())


def test_the_example_is_read_by_nobody(root):
    """It has a printer in it, whose key and port are nobody's: it must not start anything."""
    ok("install", "--root", root, "--yes")
    text = (root / SERVICE).read_text()

    assert f"ConditionPathExists=/{CONFIG}" in text
    assert install.EXAMPLE not in text


def test_a_plan_is_data(root):
    """For `setup`, which shows it among other things: what is there, what would change, and how."""
    wanted = install.wanted(Layout(root), program=PROGRAM, config=None)
    (root / RULE).parent.mkdir(parents=True)
    (root / RULE).write_bytes(wanted.files[0].data + b"\n")

    changes = install.changes(wanted.files, root)

    assert [change.kind for change in changes] == [Kind.CHANGED, Kind.NEW, Kind.NEW]
    assert changes[0].diff()[-1] == "-"
    assert changes[0].keeps_old
    assert not (root / SERVICE).exists()
    written = install.carry_out(changes)
    assert written[0].backup == root / f"{RULE}~"
    assert install.changes(wanted.files, root)[0].kind is Kind.SAME
    with pytest.raises(InstallTrouble):
        install.changes([install.File(root, b"", "a folder")], root)


def test_the_end_of_a_line_is_a_difference_too(root):
    """A file without its last newline is not the same, and says so."""
    (wanted, *_) = install.wanted(Layout(root), program=PROGRAM, config=None).files
    (root / RULE).parent.mkdir(parents=True)
    (root / RULE).write_bytes(wanted.data.rstrip(b"\n"))

    (change,) = install.changes([wanted], root)

    assert change.diff() == ["(only the ends of lines differ)"]


def test_what_is_found_is_the_same_by_either_name(root):
    """The first lines by which our files are known are really theirs."""
    ok("install", "--root", root, "--yes")
    configure(root)
    ok("install", "--root", root, "--yes")
    for name in ("udev/99-portretry-echo.rules", "systemd/portretry-udev.service", "udev/99-portretry.rules"):
        assert (REPOSITORY / name).read_bytes().startswith(b"# portretry-udev")

    goes = {str(item.path.relative_to(root)) for item in uninstall.plan(Layout(root)).goes}

    assert goes == {RULE, PRINTERS, SERVICE, EXAMPLE}
