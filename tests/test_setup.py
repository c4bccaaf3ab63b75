"""What the answers come to is written whole or not at all, changes only what differs, and nothing twice."""

import stat
from pathlib import Path

import pytest

from portretry_udev import install, installation, setup
from portretry_udev.activation import Machine, Outcome
from portretry_udev.config import Wrong, judge
from portretry_udev.config_edit import Unsure
from portretry_udev.install import InstallTrouble, Kind, Layout
from portretry_udev.login import Account, LoginTrouble
from portretry_udev.setup import Answers, Installing, KeyPlace
from portretry_udev.wizard import Choice, Key

URL = "http://127.0.0.1:5000"
PORT = "/dev/serial/by-id/usb-Prusa_Research_MK3_CZPX-if00"
SECRET = "K3Y-0123456789abcdef-S3CR3T"
ADMIN = Account("admin", ("admins",), frozenset({"ADMIN"}), "1.11.8")

OLD = f"""\
# all of them
interval = 4.0

[printers.ender]        # the other one
octoprint = "http://127.0.0.1:5001"
port = "/dev/serial/by-path/pci-1"

[printers.mk3]          # by the window
octoprint = "{URL}/"
port = "/dev/serial/by-path/pci-0"
reconnect = "always"    # as with PortRetry
"""


def quiet(_command):
    return Outcome(0)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


@pytest.fixture
def here(monkeypatch):
    """The folder of the test is the machine that runs, with a systemd whose service does not."""
    machine = Machine(systemd=True, has_systemd=True)
    monkeypatch.setattr(installation, "is_here", lambda _: True)
    monkeypatch.setattr(installation.activation, "look", lambda *_: machine)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def answers(name="mk3", port=None, key=None, **more):
    return Answers(name, URL, key or Key(SECRET, ADMIN), port or Choice(PORT), **more)


def planned(layout, given, *, path=None, start=True, program=install.PACKAGED_PROGRAM):
    there = setup.existing(path or layout.config)
    return setup.plan(given, there, Installing(layout, program, start, quiet))


def config_of(plan):
    return plan.planned.changes[0].file.data.decode()


# -- the configuration -------------------------------------------------------------------------------------


def test_the_first_configuration(layout):
    """One table, and where every setting is explained; a key in its usual place is not named."""
    plan = planned(layout, answers(interval=2.5))
    assert config_of(plan) == (
        "# portretry-udev's printers; config.example.toml explains every setting.\n\n"
        f'[printers.mk3]\noctoprint = "{URL}"\nport = "{PORT}"\ninterval = 2.5\n'
    )
    (printer,) = plan.config.printers
    assert (printer.octoprint, printer.port, printer.interval) == (URL, PORT, 2.5)
    assert plan.key_file == layout.root / "etc/portretry-udev/mk3.key"


def test_another_printer_is_appended(layout):
    """What was there stays as it is."""
    write(layout.config, OLD)
    given = answers("new", Choice(match={"serial": "1", "vendor": "2c99"}))
    assert config_of(planned(layout, given)) == (
        f'{OLD}\n[printers.new]\noctoprint = "{URL}"\nmatch = {{ serial = "1", vendor = "2c99" }}\n'
    )


def test_of_a_printer_only_what_differs_is_changed(layout):
    """Its other settings and its comments stay; an address that means the same is not touched."""
    write(layout.config, OLD)
    plan = planned(layout, answers())
    assert config_of(plan) == OLD.replace("/dev/serial/by-path/pci-0", PORT)
    assert [line for line in plan.planned.changes[0].diff() if line[:1] in "+-"][2:] == [
        '-port = "/dev/serial/by-path/pci-0"',
        f'+port = "{PORT}"',
    ]


def test_always_what_octoprint_prefers_is_no_port(layout):
    """The line goes."""
    write(layout.config, OLD)
    text = config_of(planned(layout, answers(port=Choice())))
    assert text == OLD.replace('port = "/dev/serial/by-path/pci-0"\n', "")


@pytest.mark.parametrize(
    "settings",
    [
        'api_key_file = "{usual}"\nmatch = {{ serial = "1", vendor = "0x2C99" }}\ninterval = 5\n',
        'match = {{ serial = "1", vendor = "2c99" }}\nca_file = "/etc/hostname"\n',
    ],
)
def test_the_same_answers_change_nothing(layout, settings):
    """However it is written: nothing is to be written, and nothing to be done."""
    key = write(layout.root / "etc/portretry-udev/mk3.key", SECRET)
    settings = settings.format(usual="/etc/portretry-udev/mk3.key")
    text = f"[printers.mk3]\noctoprint = '{URL}/'\n{settings}"
    write(layout.config, text)
    (old,) = judge(text, layout.config).printers
    given = answers(port=Choice(old.port, old.match), key=Key(SECRET, ADMIN, key), interval=5.0)
    assert config_of(planned(layout, given)) == text
    setup.write(planned(layout, given))
    assert not planned(layout, given).is_needed


@pytest.mark.usefixtures("here")
def test_twice_changes_nothing(layout):
    """Also after it has written all, where a service could be started."""
    setup.write(planned(layout, answers()))
    place = setup.key_place("mk3", setup.existing(layout.config), layout)
    again = planned(layout, answers(key=Key(SECRET, ADMIN, place.file)))
    assert again.key is None
    assert {change.kind for change in again.planned.changes} == {Kind.SAME}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x =", Wrong),
        ('[printers.mk3]\nprot = "x"\n', Wrong),
        ('[printers.a]\noctoprint = "http://a"\n[printers.mk3]\noctoprint = 7\n', Wrong),
        (f'[printers]\nmk3.octoprint = "{URL}"\n', Unsure),
        (f'[printers.a]\noctoprint = "{URL}"\nport = "{PORT}"\n', Wrong),  # the same port twice
        ("intervall = 3\n", Wrong),
    ],
)
def test_a_configuration_that_would_be_wrong_is_not_written(layout, text, error):
    """It is told as the service would tell it, and stays."""
    write(layout.config, text)
    with pytest.raises(error):
        planned(layout, answers())
    assert layout.config.read_text() == text


def test_a_configuration_that_cannot_be_read_is_told(layout):
    """Nothing is made up for it."""
    layout.config.mkdir(parents=True)
    with pytest.raises(Wrong, match="cannot be read"):
        setup.existing(layout.config)


def test_a_configuration_without_printers_is_added_to(layout):
    """Such as one whose lines are all comments."""
    write(layout.config, "# nothing yet\ninterval = 3.0\n")
    assert config_of(planned(layout, answers())).startswith(
        "# nothing yet\ninterval = 3.0\n\n[printers.mk3]\n"
    )


def test_a_printer_that_cannot_be_in_a_rule_is_told(layout):
    """It works without; who wants the rule knows why there is none."""
    plan = planned(layout, answers(port=Choice("/tmp/printer")))
    assert plan.planned.troubles == (
        "printer mk3: udev makes no /tmp/printer; set port to a link in /dev/serial/by-id",
    )


# -- the key -----------------------------------------------------------------------------------------------


def test_a_new_key_is_private_from_its_first_byte(layout):
    """And is nowhere else: not in a file for all, not in what is shown."""
    plan = planned(layout, answers())
    assert SECRET not in repr(plan)
    setup.write(plan)
    assert plan.key_file.read_text() == f"{SECRET}\n"
    assert stat.S_IMODE(plan.key_file.stat().st_mode) == 0o600
    for change in plan.planned.changes:
        assert SECRET not in change.file.path.read_text()


@pytest.mark.usefixtures("here")
def test_where_a_key_belongs(layout, tmp_path):
    """In its usual place; where it is, if the service sees it there; beside a configuration elsewhere."""
    there = setup.existing(layout.config)
    usual = layout.config.with_name("mk3.key")
    assert setup.key_place("mk3", there, layout) == KeyPlace(usual)
    assert setup.key_place("mk3", there, layout, usual) == KeyPlace(usual)
    kept = setup.key_place("mk3", there, layout, Path("/srv/keys/mk3"))
    assert kept == KeyPlace(Path("/srv/keys/mk3"), "/srv/keys/mk3")
    for hidden in ("/home/pi/key", "/root/key", "/tmp/key"):
        assert setup.key_place("mk3", there, layout, Path(hidden)) == KeyPlace(usual)
    elsewhere = setup.existing(tmp_path / "mine.toml")
    assert setup.key_place("mk3", elsewhere, layout) == KeyPlace(
        tmp_path / "mk3.key", str(tmp_path / "mk3.key")
    )


def test_a_key_that_is_configured_stays_where_it_is(layout):
    """Also in a system in the making: there its path begins elsewhere."""
    write(layout.config, f'[printers.mk3]\noctoprint = "{URL}"\napi_key_file = "/srv/k"\n')
    there = setup.existing(layout.config)
    assert setup.key_place("mk3", there, layout) == KeyPlace(layout.root / "srv/k", "/srv/k")
    text = config_of(planned(layout, answers(port=Choice())))
    assert text == layout.config.read_text()


def test_a_key_for_a_system_in_the_making_is_stored_there(layout, tmp_path):
    """The file that was given lies on another machine."""
    given = write(tmp_path.parent / f"{tmp_path.name}.key", SECRET)
    plan = planned(layout, answers(key=Key(SECRET, ADMIN, given)))
    assert (plan.key_file, plan.key) == (layout.config.with_name("mk3.key"), SECRET)
    assert "api_key_file" not in config_of(plan)


def test_what_is_no_key_is_not_replaced_by_one(layout):
    """A file that holds something else survives, and nothing is written."""
    write(layout.config.with_name("mk3.key"), "my diary\nof a year\n")
    with pytest.raises(LoginTrouble, match="other than a key"):
        planned(layout, answers())


# -- writing -----------------------------------------------------------------------------------------------


def tree(folder):
    """All files, with what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_there_is_kept_beside_it(layout):
    """The configuration of before, letter for letter."""
    write(layout.config, OLD)
    written = setup.write(planned(layout, answers()))
    assert written[0].backup.read_text() == OLD
    assert written[0].backup.parent == layout.config.parent


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_all_of_it_or_nothing(layout, monkeypatch, error, number):
    """A full disk or a Ctrl-C in the middle leaves what was there before: key, configuration and all."""
    write(layout.config, OLD)
    write(layout.config.with_name("mk3.key"), "OLD-KEY").chmod(0o600)
    before = tree(layout.root)
    plan = planned(layout, answers())
    count, real = iter(range(100)), install.files.write

    def failing(path, data, mode=0o600):
        if next(count) == number + 1:
            raise error
        real(path, data, mode)

    monkeypatch.setattr(install.files, "write", failing)
    with pytest.raises((InstallTrouble, KeyboardInterrupt)):
        setup.write(plan)
    assert tree(layout.root) == before


def test_a_first_key_goes_again_if_the_rest_fails(layout, monkeypatch):
    """Nothing of ours is left behind."""
    plan = planned(layout, answers())

    def refuse(_changes):
        raise InstallTrouble("no", layout.config)

    monkeypatch.setattr(install, "carry_out", refuse)
    with pytest.raises(InstallTrouble):
        setup.write(plan)
    assert tree(layout.root) == {}


# -- what follows ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_service_that_runs_reads_what_changed(layout, monkeypatch):
    """The unit and the rules are as they are: only the configuration is read again."""
    setup.write(planned(layout, answers()))
    machine = Machine(systemd=True, has_systemd=True, active=True, enabled=True)
    monkeypatch.setattr(installation.activation, "look", lambda *_: machine)
    key = Key(SECRET, ADMIN, layout.config.with_name("mk3.key"))
    plan = planned(layout, answers(key=key, interval=3.0))
    assert [step.command[:2] for step in plan.planned.steps] == [("systemctl", "reload")]
    new = Key(f"{SECRET}-2", ADMIN)
    plan = planned(layout, answers(key=new))
    assert plan.key == new.secret
    assert [step.command[:2] for step in plan.planned.steps] == [("systemctl", "reload")]


@pytest.mark.usefixtures("here")
def test_nothing_is_started_if_it_is_not_to_be(layout):
    """The files are written all the same."""
    plan = planned(layout, answers(), start=False)
    assert [step.command for step in plan.planned.steps] == [("systemctl", "daemon-reload")]
    assert len(plan.planned.changes) > 2


def test_a_configuration_of_ones_own_installs_nothing(layout, tmp_path):
    """The service would not read it."""
    plan = planned(layout, answers(), path=tmp_path / "mine.toml", program=None)
    assert [change.file.path for change in plan.planned.changes] == [tmp_path / "mine.toml"]
    assert setup.written_paths(plan) == [tmp_path / "mk3.key", tmp_path / "mine.toml"]
    assert f'api_key_file = "{tmp_path}/mk3.key"' in config_of(plan)
