"""What `matching` promises: never a wrong port, never one of two, and always what to write instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portretry_udev.matching import KEYS, Candidate, Unchosen, choose, nameless, unfit

CH340 = {"vendor": "1a86", "product": "7523"}
CP2102 = {"vendor": "10c4", "product": "ea60"}
FTDI = {"vendor": "0403", "product": "6001"}
PRUSA = {"vendor": "2c99", "product": "0002"}

SMALL = {  # few values, so that boards are often alike
    "serial": ["CZPX1", "CZPX2", "0001", "A B"],
    "vendor": ["2c99", "1a86", "10c4", "0403"],
    "product": ["0002", "7523", "ea60", "6001"],
    "path": ["pci-usb-0:1:1.0", "pci-usb-0:2:1.0"],
    "interface": ["00", "02"],
}
traits = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in SMALL.items()})
matches = traits.filter(bool)


@st.composite
def machines(draw):
    """Any set of ports: each with its own node, each in a socket of its own."""
    boards = draw(st.lists(traits, max_size=5))
    return [
        Candidate(f"/dev/ttyUSB{n}", board, draw(st.sampled_from([None, f"/dev/serial/by-path/{n}"])))
        for n, board in enumerate(boards)
    ]


def same(key, one, other):
    """Independent of the code under test: what a person would call the same value."""
    if key in {"vendor", "product", "interface"}:
        return int(one, 16) == int(other, 16)
    return one.replace(" ", "_") == other.replace(" ", "_")


@given(machines(), matches)
def test_never_a_wrong_one_never_one_of_two(ports, match):
    """Promise 7: what is chosen has every property that was asked for, and no other port has."""
    fits = [p for p in ports if all(k in p.traits and same(k, p.traits[k], match[k]) for k in match)]

    chosen = choose(ports, match)

    if isinstance(chosen, Candidate):
        assert fits == [chosen]
    else:
        assert chosen.fits == len(fits)


@given(machines(), matches)
def test_a_bridge_is_never_chosen_by_its_ids_alone(ports, match):
    """CH340, CP210x and FTDI chips are in everything: only a socket or a serial number of its own will do."""
    chosen = choose(ports, match)

    if isinstance(chosen, Candidate) and (chosen.traits.get("vendor"), chosen.traits.get("product")) in {
        (bridge["vendor"], bridge["product"]) for bridge in (CH340, CP2102, FTDI)
    }:
        assert "path" in match or ("serial" in match and match["serial"] != "0001")


@given(machines(), matches, st.randoms(use_true_random=False))
def test_the_order_of_the_ports_decides_nothing(ports, match, random):
    """ttyUSB0 and ttyUSB1 swap at every boot: the choice is the same board, or none, as before."""
    shuffled = random.sample(ports, len(ports))

    chosen, again = choose(ports, match), choose(shuffled, match)

    assert isinstance(chosen, Unchosen) == isinstance(again, Unchosen)
    if isinstance(chosen, Candidate):
        assert chosen == again


@given(machines(), matches, traits)
def test_another_board_never_changes_who_the_printer_is(ports, match, neighbour):
    """A neighbour plugged in can make the choice impossible, never another one of those that were there."""
    before = choose(ports, match)
    after = choose([*ports, Candidate("/dev/ttyACM9", neighbour)], match)

    if isinstance(before, Candidate) and isinstance(after, Candidate):
        assert after == before
    if isinstance(before, Unchosen) and isinstance(after, Candidate):
        assert after.node == "/dev/ttyACM9"
        assert before.fits == 0


@given(machines(), matches)
def test_of_two_both_are_named_with_what_tells_them_apart(ports, match):
    """The error shows every node that fits; a key it names has another value with each of them."""
    chosen = choose(ports, match)

    if isinstance(chosen, Unchosen) and chosen.fits > 1:
        fits = [port for port in ports if not unfit(port.traits, match)]
        assert all(port.node in chosen.why for port in fits)
        if "nothing tells them apart" not in chosen.why:
            key = next(key for key in KEYS if f" has {key}=" in chosen.why)
            assert len({port.traits.get(key) for port in fits}) == len(fits)
            assert key not in match


@pytest.mark.parametrize(
    ("traits", "match", "by_path", "instead"),
    [
        (CH340, CH340, "/dev/serial/by-path/p1", "set `port` to /dev/serial/by-path/p1 instead"),
        (CH340 | {"path": "p1"}, {"vendor": "1a86"}, None, "add path=p1 to `match`"),
        (CH340, {"product": "7523"}, None, "set `port` to its link in /dev/serial/by-path instead"),
        (CH340 | {"interface": "00"}, CH340 | {"interface": "00"}, None, "set `port` to its link in"),
        (
            CP2102 | {"serial": "0001"},
            {"serial": "0001"},
            "/dev/serial/by-path/p1",
            "set `port` to /dev/serial",
        ),
        (FTDI | {"serial": "A10K"}, FTDI, "/dev/serial/by-path/p1", "add serial=A10K to `match`"),
    ],
)
def test_a_bridge_by_its_ids_alone_is_refused_with_what_to_write(traits, match, by_path, instead):
    """Any board with that chip would fit while the printer is off: the answer names a way that is certain."""
    chosen = choose([Candidate("/dev/ttyUSB0", traits, by_path)], match)

    assert isinstance(chosen, Unchosen)
    assert "so does any board with that chip" in chosen.why
    assert instead in chosen.why


@pytest.mark.parametrize(
    ("traits", "match"),
    [
        (PRUSA, {"vendor": "2c99"}),
        (PRUSA | {"serial": "0001"}, {"serial": "0001"}),
        (FTDI | {"serial": "A10K"}, {"serial": "A10K"}),
        (FTDI | {"serial": "A10K"}, FTDI | {"serial": "A10K"}),
        (CH340 | {"path": "p1"}, {"path": "p1"}),
        (CP2102 | {"serial": "0001", "path": "p1"}, {"serial": "0001", "path": "p1"}),
    ],
)
def test_what_is_certain_is_chosen(traits, match):
    """A printer maker's own ids, a serial number of its own, or a socket."""
    printer = Candidate("/dev/ttyACM0", traits)

    assert choose([printer, Candidate("/dev/ttyUSB7", {"vendor": "067b"})], match) == printer


def test_nothing_asked_for_is_nothing_chosen():
    """An empty match is no match for anything."""
    assert choose([Candidate("/dev/ttyACM0", PRUSA)], {}).fits == 0


def test_only_bridges_have_serial_numbers_that_are_none():
    """0001 is what a CP2102 has from its maker; a printer's own board may well be number one."""
    assert nameless(CP2102 | {"serial": "0001"})
    assert nameless(FTDI | {"serial": "00000000"})
    assert nameless(PRUSA)
    assert not nameless(PRUSA | {"serial": "0001"})
    assert not nameless(CP2102 | {"serial": "0010"})
