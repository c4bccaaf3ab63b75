"""What firmwares really say, how it sounds at a wrong baudrate, and what must never pass for a printer."""

import itertools
import math
import time
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portretry_udev.firmware import BAUDRATES, LINE_LIMIT, NOISE_LIMIT, POKE, Firmware, Reader, Sign

BANNER, ANSWER, CHATTER = Sign.BANNER, Sign.ANSWER, Sign.CHATTER
BUSY, PRINTING, NOT_PRINTING = Sign.BUSY, Sign.PRINTING, Sign.NOT_PRINTING
ERROR, GARBAGE = Sign.ERROR, Sign.GARBAGE
MARLINS_UUID = "cede2a2f-41a2-4748-9b12-c55c62f367ff"
NO_UUID = "00000000-0000-0000-0000-000000000000"


def signs(*chunks: bytes) -> list[Sign]:
    reader = Reader()
    return list(itertools.chain.from_iterable(map(reader.feed, chunks)))


@dataclass(frozen=True)
class Transcript:
    name: str
    said: bytes
    signs: list[Sign]
    firmware: Firmware | None = None  # who answered M115


# From logs in issue trackers (the issue's number is in the name) and from the firmwares' sources, shortened.
TRANSCRIPTS = [
    Transcript(
        "Marlin 1.1 boots (Marlin 7021)",
        b"start\necho: External Reset\nMarlin bugfix-1.1.x\n"
        b"echo: Last Updated: 2017-05-04 12:00 | Author: LRP\nCompiled: Jun 10 2017\n"
        b"echo: Free Memory: 2765  PlannerBufferBytes: 1232\n"
        b"echo:V38 stored settings retrieved (453 bytes; crc -15873)\n"
        b"Unified Bed Leveling System v1.01 inactive.\necho:  G21    ; Units in mm\n",
        [BANNER, BANNER, BANNER, CHATTER, CHATTER, CHATTER, CHATTER],
    ),
    Transcript(
        "Marlin 2.0 boots with an EEPROM it cannot read, and works (Marlin 12037)",
        b"start\necho:Marlin bugfix-2.0.x\necho: Last Updated: 2018-01-20 | Author: @f0x06\n"
        b"echo: Free Memory: 3028  PlannerBufferBytes: 1472\n"
        b"Error:EEPROM CRC mismatch - (stored) 364 != 28739 (calculated)!\n",
        [BANNER, BANNER, CHATTER, CHATTER, CHATTER],
    ),
    Transcript(
        "Marlin 2.0 answers M115, with ADVANCED_OK (Marlin 21796)",
        b"FIRMWARE_NAME:Marlin 2.0.8 (May 4 2021 14:14:32) SOURCE_CODE_URL:github.com/MarlinFirmware/Marlin "
        b"PROTOCOL_VERSION:1.0 MACHINE_TYPE:ZAV big + M2.0.x_bugfix EXTRUDER_COUNT:1 "
        b"UUID:cede2a2f-41a2-4748-9b12-c55c62f367ff\n"
        b"Cap:SERIAL_XON_XOFF:0\nCap:BINARY_FILE_TRANSFER:0\nCap:EEPROM:1\n"
        b"Cap:AUTOREPORT_TEMP:1\nok P15 B31\n"
        b" T:41.13 /0.00 B:38.79 /0.00 @:0 B@:0\n",
        [ANSWER, ANSWER, CHATTER],
        Firmware("Marlin 2.0.8 (May 4 2021 14:14:32)", "ZAV big + M2.0.x_bugfix", MARLINS_UUID),
    ),
    Transcript(
        "Prusa MK3 boots, then answers M115 (Prusa-Firmware 4576)",
        b"start\necho: 3.14.0-BETA1-7984\nMMU is Off\nSpoolJoin is On\nPowerUp\n"
        b"echo: Last Updated: 2024-01-22 09:11:19 | Author: (none, default config)\n"
        b"echo:Stored settings retrieved\nadc_init\necho:SD card ok\n"
        b"FIRMWARE_NAME:Prusa-Firmware 3.14.0-BETA1 based on Marlin "
        b"FIRMWARE_URL:https://github.com/prusa3d/Prusa-Firmware PROTOCOL_VERSION:1.0 "
        b"MACHINE_TYPE:Prusa i3 MK3S EXTRUDER_COUNT:1 UUID:00000000-0000-0000-0000-000000000000\n"
        b"Cap:AUTOREPORT_TEMP:1\nok\n",
        [BANNER, CHATTER, BANNER, CHATTER, CHATTER, CHATTER, ANSWER, ANSWER],
        Firmware("Prusa-Firmware 3.14.0-BETA1 based on Marlin", "Prusa i3 MK3S", NO_UUID),
    ),
    Transcript(
        "Prusa Core One (Buddy) answers M115 without a banner",
        b"FIRMWARE_NAME:Prusa-Firmware-Buddy 6.4.0+11974 (Github) "
        b"SOURCE_CODE_URL:https://github.com/prusa3d/Prusa-Firmware-Buddy PROTOCOL_VERSION:1.0 "
        b"MACHINE_TYPE:Prusa-COREONE EXTRUDER_COUNT:1 UUID:239ba2dd-2509-11f1-b239-0010182e9fa6\n"
        b"Cap:SERIAL_XON_XOFF:0\nCap:BINARY_FILE_TRANSFER:0\nok\n",
        [ANSWER, ANSWER],
        Firmware(
            "Prusa-Firmware-Buddy 6.4.0+11974 (Github)",
            "Prusa-COREONE",
            "239ba2dd-2509-11f1-b239-0010182e9fa6",
        ),
    ),
    Transcript(
        "RepRapFirmware answers M115, a space after the colon",
        b"FIRMWARE_NAME: RepRapFirmware for Duet 2 WiFi/Ethernet FIRMWARE_VERSION: 3.3 "
        b"ELECTRONICS: Duet WiFi 1.02 or later FIRMWARE_DATE: 2021-06-15 21:45:03\nok\n",
        [ANSWER, ANSWER],
        Firmware("RepRapFirmware for Duet 2 WiFi/Ethernet", "Duet WiFi 1.02 or later", None),
    ),
    Transcript(
        "Smoothieware boots and answers M115, separated by commas",
        b"Smoothie\r\nok\r\nFIRMWARE_NAME:Smoothieware, FIRMWARE_URL:http%3A//smoothieware.org, "
        b"X-SOURCE_CODE_URL:https://github.com/Smoothieware/Smoothieware, FIRMWARE_VERSION:edge-0565b13, "
        b"PROTOCOL_VERSION:1.0, X-FIRMWARE_BUILD_DATE:Jun 19 2021 16:12:18, "
        b"X-SYSTEM_CLOCK:100MHz, X-AXES:5\r\nok\r\n",
        [BANNER, ANSWER, ANSWER, ANSWER],
        Firmware("Smoothieware", None, None),
    ),
    Transcript(
        "Repetier boots and answers M115, then idles (OctoPrint 3122)",
        b"start\r\nInfo:External Reset\r\nInfo: 0.000000 0.000000 0.000000\r\nFree RAM:4142\r\nok 1\r\n"
        b"FIRMWARE_NAME:Repetier_0.91 FIRMWARE_URL:https://github.com/repetier/Repetier-Firmware/ "
        b"PROTOCOL_VERSION:1.0 MACHINE_TYPE:Mendel EXTRUDER_COUNT:1 REPETIER_PROTOCOL:2\r\n"
        b"Printed filament:1071.80m Printing time:10 days 20 hours 14 min\r\nwait\r\nwait\r\n",
        [BANNER, BANNER, ANSWER, ANSWER, CHATTER, CHATTER],
        Firmware("Repetier_0.91", "Mendel", None),
    ),
    Transcript(
        "Klipper gets its printer back and answers M115",
        b"// Klipper state: Disconnect\n// Klipper state: Ready\n"
        b"ok FIRMWARE_NAME:Klipper FIRMWARE_VERSION:v0.12.0-85-gd785b396\n",
        [CHATTER, BANNER, ANSWER],
        Firmware("Klipper", None, None),
    ),
    Transcript(
        "Klipper shuts down (Klipper 1608)",
        b"// Klipper state: Shutdown\n// MCU 'mcu' shutdown: No next step\n"
        b"!! MCU 'mcu' shutdown: No next step\nok\n",
        [CHATTER, CHATTER, ERROR, ANSWER],
    ),
    Transcript(
        "Malyan M200 (OctoPrint 1737)",
        b"NAME: Malyan VER: 2.9 MODEL: M200 HW: HA02\nok N1 P15 B15\n",
        [ANSWER, ANSWER],
        Firmware("Malyan", "M200", None),
    ),
    Transcript(
        "Malyan M200 with a dot and tabs (ArcWelderPlugin 236)",
        b"NAME. Malyan\tVER: 4.0\tMODEL: M200\tHW: HH02\n"
        b"CLK:EXT BUILD: Aug 10 2017 09:53:33\nok N127 P15 B15\n",
        [ANSWER, ANSWER],
        Firmware("Malyan", "M200", None),
    ),
    Transcript(
        "Grbl 1.1 boots and knows no M115",
        b"\r\nGrbl 1.1h ['$' for help]\r\nerror:20\r\n",
        [BANNER, ANSWER],
    ),
    Transcript(
        "Solidoodle with NULs at boot (OctoPrint 1003, 1770)",
        b"\0\0start\r\n\0ok\r\n\0\0\0wait\r\n",
        [BANNER, ANSWER, CHATTER],
    ),
    Transcript(
        "Marlin is killed (knutwurst 289)",
        b"ok T:177.52 /195.00 B:48.17 /45.00 @:127 B@:0\n"
        b"Error:Thermal Runaway, system stopped! Heater_ID: E0\nError:Printer halted. kill() called!\n",
        [ANSWER, ERROR, ERROR],
    ),
    Transcript(
        "Prusa MK3 sorts out a garbled line (Prusa-Firmware 738)",
        b'echo:Unknown command: "o@O`Cn OoC"(2)\nok\nError:No Line Number with checksum, Last Line: 297\n'
        b"Resend: 298\nok\n",
        [ANSWER, ANSWER, CHATTER, ANSWER, ANSWER],
    ),
]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda transcript: transcript.name)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_transcript(transcript, ending):
    """What each firmware really says is read as what it means, whatever ends its lines."""
    reader = Reader()
    assert reader.feed(transcript.said.replace(b"\r\n", b"\n").replace(b"\n", ending)) == transcript.signs
    assert reader.firmware == transcript.firmware


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("start", BANNER),
        ("start ", BANNER),
        ("PowerUp", BANNER),
        ("echo: Brown out Reset", BANNER),
        (" Watchdog Reset", BANNER),
        ("Info:Software Reset", BANNER),
        ("Marlin1.0.0", BANNER),
        ("Smoothie Running @120MHz", BANNER),
        ("GrblHAL 1.1f ['$' or '$HELP' for help]", BANNER),
        ("// Klipper state: Ready", BANNER),
        ("ok", ANSWER),
        ("ok 0", ANSWER),
        ("ok N10 P15 B3", ANSWER),
        ("ok T:21.3 /0.0 B:21.0 /0.0 @:0 B@:0", ANSWER),
        ("FIRMWARE_NAME:", ANSWER),
        ("error: Unsupported command", ANSWER),
        ("Unknown command:M115", ANSWER),
        ('Error:Unknown command: "M115"', ANSWER),
        ('// Unknown command:"M204"', ANSWER),
        # The bytes that wait in a device can be echoed to it as commands before the port is raw.
        ('echo:Unknown command: "start"', ANSWER),
        ('echo:Unknown command: "echo:busy: processing"', ANSWER),
        ("Resend:12", ANSWER),
        ("rs N65728", ANSWER),
        ("echo:busy: processing", BUSY),
        ("busy: paused for input", BUSY),
        ("echo:busy: paused for user", BUSY),
        ("// paused for user", BUSY),
        (" T:150.2 /200.0 B:60.0 /60.0 @:127 B@:0 W:?", BUSY),
        ("SD printing byte 2134/235422", PRINTING),
        ("ok SD printing byte 1/2", PRINTING),
        ("SD print paused", PRINTING),
        ("SD printing byte 0/0", NOT_PRINTING),
        ("Not SD printing", NOT_PRINTING),
        ("ok Not SD printing", NOT_PRINTING),
        ("Not currently playing", NOT_PRINTING),
        ("Done printing file", NOT_PRINTING),
        ("wait", CHATTER),
        ("T:21.3 /0.0 B:21.0 /0.0 T0:21.3 /0.0 @:0 B@:0 P:26.7 A:39.0", CHATTER),
        ("T0:-14.2 /0.0", CHATTER),
        ("B:60.0 /60.0", CHATTER),
        ("//action:notification Печать завершена", CHATTER),
        ("echo:SD card ok", CHATTER),
        ("Error:checksum mismatch, Last Line: 11633", CHATTER),
        ("Error:expected line 5 got 7", CHATTER),
        ("Error:Format error", CHATTER),
        ("Error:volume.init failed", CHATTER),
        ("Error:openRoot failed", CHATTER),
        ("Error:workDir", CHATTER),
        ("Error:error writing to file", CHATTER),
        ("Error:Cannot open subdir", CHATTER),
        ("Error:open failed, File: x.gco.", CHATTER),
        ("Error:Cannot enter: x", CHATTER),
        ("Error:Heating failed, system stopped! Heater_ID: bed", ERROR),
        ("Error:Printer stopped due to errors. Fix the error and use M999 to restart.", ERROR),
        ("ERROR: Temperature reading is unreadable on T HALT asserted", ERROR),
        ("error:9", ERROR),
        ("error:200", ERROR),
        ("fatal:Heater/sensor error - Printer stopped and heaters disabled", ERROR),
        ("!! Printer is not ready", ERROR),
        ("ALARM: Kill button pressed", ERROR),
        ("HALTED, M999 or $X to exit HALT state", ERROR),
    ],
)
def test_line(line, expected):
    """One line on its own is one sign."""
    assert signs(line.encode() + b"\n") == [expected]


@pytest.mark.parametrize(
    "line",
    [
        "M115",
        "m115",
        "> M115",
        "OK",
        "ERROR",
        "AT+CGMI",
        "okay",
        "ok\N{INVERTED EXCLAMATION MARK}",
        "ok \N{LATIN SMALL LETTER E WITH ACUTE}",
        "o",
        "token",
        "restart",
        "Printer restarted",
        "starting",
        "Start",
        "SD start",
        "await",
        "waiting",
        "PowerUp failed",
        "Marlin",
        "Smoothieboard",
        "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47",
        "raspberrypi login:",
        "MMU is Off",
        "Cap:AUTOREPORT_TEMP:1",
        "Target:12",
        "T:",
        "   ",
    ],
)
def test_unknown_text_is_no_sign(line):
    """Readable text that no printer firmware is known to say is no sign at all: unknown means hands off."""
    assert signs(line.encode() + b"\r\n") == []


def test_our_poke_echoed_is_no_life():
    """A port that merely echoes what we send (a terminal, a loopback plug) is not a printer."""
    assert signs(POKE * 5) == []
    assert signs(POKE.replace(b"\n", b"\r\n") * 5) == []


@pytest.mark.parametrize("sign", Sign)
def test_what_signs_allow(sign):
    """Faults and noise are no life; a printer at work is alive, but hands off."""
    assert sign.alive == (sign not in {ERROR, GARBAGE})
    assert sign.hands_off == (sign in {BUSY, PRINTING})


def test_a_line_counts_when_it_is_complete():
    """Half a word means nothing yet: "ok" may become "okay"."""
    reader = Reader()
    assert reader.feed(b"ok") == []
    assert reader.feed(b"\n") == [ANSWER]
    assert reader.feed(b"\n") == []


def test_reset_forgets_the_partial_line_only():
    """After an open or a change of baudrate, half lines and garbage are gone; the firmware stays."""
    reader = Reader()
    reader.feed(b"NAME: Malyan VER: 2.9 MODEL: M200\nstar")
    reader.reset()
    assert reader.feed(b"t\n") == []
    assert reader.feed(b"\x80" * NOISE_LIMIT) == [GARBAGE]
    reader.reset()
    assert reader.feed(b"ok\n") == [ANSWER]
    assert reader.firmware == Firmware("Malyan", "M200", None)


def test_the_last_firmware_counts():
    """Another printer on the same port replaces the first; what it does not tell is None, not the first's."""
    reader = Reader()
    reader.feed(b"FIRMWARE_NAME:Marlin 2.1 MACHINE_TYPE:Ender-3 UUID:1234\n")
    reader.feed(b"FIRMWARE_NAME:  MACHINE_TYPE:Anet A8\n")
    assert reader.firmware == Firmware(None, "Anet A8", None)


@pytest.mark.parametrize("separator", [b" ", b"\t", b",", b", "])
@pytest.mark.parametrize("key", [b"URL", b"X-AXES", b"X_2ND"])
def test_every_key_ends_the_value_before_it(separator, key):
    """Fields are told apart by any separator and key that firmwares use, also keys that we do not know."""
    reader = Reader()
    reader.feed(b"FIRMWARE_NAME:Smoothieware" + separator + key + b":5\n")
    assert reader.firmware == Firmware("Smoothieware", None, None)


def test_quoted_firmware_names_nobody():
    """An M115 answer that stands inside another line is not this printer's."""
    reader = Reader()
    assert reader.feed(b'echo:Unknown command: "FIRMWARE_NAME:Marlin 2.1 UUID:1234"\n') == [ANSWER]
    assert reader.firmware is None


def test_a_firmware_name_is_safe_to_print():
    """Stray bytes and control characters in an answer reach neither logs nor terminals."""
    reader = Reader()
    assert reader.feed(b"FIRMWARE_NAME:Mar\x1b[31mlin\xff 2.1 MACHINE_TYPE:Ender-3\n") == [ANSWER]
    assert reader.firmware is not None
    assert reader.firmware.name == "Mar\ufffd[31mlin\ufffd 2.1"
    assert reader.firmware.name.encode("utf-8")


def test_a_line_too_long_is_judged_once_and_cut():
    """An endless line has its one say at LINE_LIMIT bytes, and the line after it is read as ever."""
    for head, expected in ((b"echo:", [CHATTER]), (b"ok ", [ANSWER]), (b"Z", [])):
        endless = head.ljust(LINE_LIMIT, b"x")
        assert signs(endless) == expected
        assert signs(endless, b"ok" * LINE_LIMIT, b"\nstart\n") == [*expected, BANNER]


def test_a_cut_answer_is_no_identity():
    """The end of a cut M115 answer would be a wrong value: somebody answered, but who is left open."""
    whole = b"FIRMWARE_NAME:Marlin UUID:".ljust(LINE_LIMIT - 1, b"1")
    reader = Reader()
    assert reader.feed(whole + b"1\n") == [ANSWER]
    assert reader.firmware is None
    assert reader.feed(whole + b"\n") == [ANSWER]
    assert reader.firmware is not None


# Garbage


def test_garbage_is_told_before_its_line_ends():
    """A wrong baudrate is known after NOISE_LIMIT bytes, once a line, though no newline ever comes."""
    assert signs(b"\xf8" * (NOISE_LIMIT - 1)) == []
    assert signs(b"\xf8" * NOISE_LIMIT) == [GARBAGE]
    assert signs(b"\xf8" * 10_000, b"ok", b"\nok\n") == [GARBAGE, ANSWER]
    assert signs(b"\0" * 10_000) == [GARBAGE]


@pytest.mark.parametrize(
    "line",
    [b"\xf8", b"\0", b"\x01\x02", b"\xffok", b"ok\xff", b"\xe0\x80ok\x98", b"start\xf8\x80", b"wait\x1c\x1c"],
)
def test_garbage_that_holds_a_word_is_garbage(line):
    """An "ok" by accident in a mostly binary line is no answer."""
    assert signs(line + b"\n") == [GARBAGE]


def test_one_stray_byte_spoils_no_line():
    """A flipped byte in front of a banner, or within a long line, is not a wrong baudrate."""
    assert signs(b"\xffstart\n") == [BANNER]
    assert signs(b"\x11echo:SD c\xf2rd ok\n") == [CHATTER]


def test_more_than_a_quarter_of_noise_is_garbage():
    """Two bad bytes of eight are let pass, two of seven are not."""
    assert signs(b"\xff\xffecho:x\n") == [CHATTER]
    assert signs(b"\xff\xffstart\n") == [GARBAGE]


def heard(data: bytes, *, sent_at: int, heard_at: int) -> bytes:
    """What a UART (8N1, sampled in the middle of each bit) makes of bytes sent at another baudrate."""
    bit = sent_at / heard_at  # one of the listener's bits, in bits on the wire
    wire = b"".join(bytes([0, *(byte >> n & 1 for n in range(8)), 1]) for byte in data)
    wire += b"\1" * math.ceil(11 * bit)  # idle
    result, now = bytearray(), 0.0
    while (edge := wire.find(0, int(now))) >= 0:
        now = max(now, edge)
        if wire[int(now + bit / 2)]:  # too short for a start bit
            now += bit / 2
            continue
        result.append(sum(wire[int(now + bit * (1.5 + n))] << n for n in range(8)))
        now += bit * 9.5  # a wrong stop bit is not looked at: the kernel delivers such bytes all the same
    return bytes(result)


def test_the_uart_hears_right_at_the_right_baudrate():
    """The listener that makes the garbage below is a faithful one, also within a UART's usual tolerance."""
    said = TRANSCRIPTS[0].said
    assert heard(said, sent_at=115200, heard_at=115200) == said
    assert heard(said, sent_at=115200, heard_at=117000) == said


@pytest.mark.parametrize(("sent_at", "heard_at"), list(itertools.permutations(BAUDRATES, 2)))
def test_wrong_baudrates_are_garbage(sent_at, heard_at):
    """Real transcripts at any wrong baudrate are no life and no fault; a few M115 answers are garbage."""
    for transcript in TRANSCRIPTS:
        said = transcript.said * math.ceil(4 * sent_at / heard_at)  # a slow listener hears few bytes
        found = signs(heard(said, sent_at=sent_at, heard_at=heard_at))
        assert set(found) <= {GARBAGE}, transcript.name
        assert transcript.firmware is None or GARBAGE in found, transcript.name


# Properties

unhurried = settings(deadline=None)  # a busy machine is no failure

WORDS = [
    b"ok",
    b"start",
    b"wait",
    b"M115",
    b"FIRMWARE_NAME:x",
    b"echo:busy: processing",
    b"Error:x",
    b"T:2",
    b"//",
]
ENDS = [b"\n", b"\r", b"\r\n"]
NOISE_BYTES = [
    *range(1, 9),
    *range(14, 32),
    *range(127, 192),
    *range(248, 256),
]  # none can begin a UTF-8 character
noise = st.binary(min_size=24, max_size=60).map(
    lambda raw: bytes(NOISE_BYTES[byte % len(NOISE_BYTES)] for byte in raw)
)
streams = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([*WORDS, *ENDS]), noise)).map(b"".join)


@unhurried
@given(streams, st.lists(st.integers(0, 400)))
@example(b"\xf8" * 40 + b"\r\nok\r\n", [15, 16, 17, 40, 41, 42, 44])
@example(b"\xf8" * 6 + b"echo:" * 20 + b"\n", [NOISE_LIMIT])
@example(b"echo:" + b"x" * LINE_LIMIT + b"\nok\n", [LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1])
def test_signs_do_not_depend_on_chunks(data, cuts):
    """The same bytes give the same signs and the same firmware, however reads happen to split them."""
    whole, split, single = Reader(), Reader(), Reader()
    expected = whole.feed(data)
    edges = [0, *sorted(cuts), len(data)]
    assert [sign for a, b in itertools.pairwise(edges) for sign in split.feed(data[a:b])] == expected
    assert [sign for byte in data for sign in single.feed(bytes([byte]))] == expected
    assert whole.firmware == split.firmware == single.firmware


@unhurried
@given(st.lists(st.binary(max_size=2000)))
@example([b"x" * (LINE_LIMIT + 1)])
@example([b"x" * (LINE_LIMIT - 1), b"xx"])
def test_any_bytes_are_survived(chunks):
    """No bytes raise an error, and no more than one line of them is kept."""
    reader = Reader()
    for chunk in chunks:
        ends = chunk.count(b"\n") + chunk.count(b"\r")
        assert len(reader.feed(chunk)) <= ends + 1
        assert len(reader._line) <= LINE_LIMIT


@unhurried
@given(st.lists(st.one_of(st.integers(0x80, 0xFF), st.sampled_from([10, 13]))).map(bytes))
def test_high_bytes_are_never_life(data):
    """Bytes with the high bit set, with or without line ends, are never a sign of anything but garbage."""
    assert set(signs(data)) <= {GARBAGE}


@unhurried
@given(st.lists(st.tuples(noise, st.sampled_from(WORDS), noise, st.sampled_from([*ENDS, b""]))))
@example([(b"\xf8" * 24, b"ok", b"\x80" * 24, b"\n")])
def test_words_in_noise_are_never_life(lines):
    """A firmware's own words inside mostly binary lines are never life, nor a fault, nor an identity."""
    reader = Reader()
    assert set(reader.feed(b"".join(itertools.chain.from_iterable(lines)))) <= {GARBAGE}
    assert reader.firmware is None


# Floods


@pytest.mark.parametrize(
    "unit", [b"x", b" ", b"\0", b"\xf8", b"ok\n", b"\n", b"FIRMWARE_NAME:A " * 20, b"echo:"]
)
def test_a_flood_costs_linear_time_and_bounded_memory(unit):
    """Twenty times the bytes take about twenty times the time, and leave nothing behind."""

    def seconds(size: int) -> float:
        chunk, reader = (unit * 4096)[:4096], Reader()
        began = time.process_time()
        for _ in range(size // len(chunk)):
            reader.feed(chunk)
        return time.process_time() - began

    few, many = min(seconds(20_480) for _ in range(3)), seconds(409_600)
    assert many < 100 * max(few, 0.001)  # linear: 20 times, quadratic: 400

    reader = Reader()
    reader.feed(unit * 100)
    tracemalloc.start()
    try:
        for _ in range(50):
            reader.feed(unit * 100)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 16 * LINE_LIMIT
