"""What SockJS needs of ``Rest``: answers that are text, bodies that are lists; as bounded as all others."""

import contextlib
import json

import pytest

from portretry_udev.rest import BODY_LIMIT, Kind, Rest, Trouble
from push_server import KEY, WAIT, Tcp, http


@contextlib.contextmanager
def plain(answer, got=None):
    """A Rest for text, and a server that answers everything so; its requests are put into ``got``."""

    def talk(connection, _gone):
        while request := connection.recv(65536):
            if got is not None:
                got.append(request)
            connection.sendall(answer)

    with (
        Tcp(talk) as server,
        contextlib.closing(Rest(server.url, None, timeout=(WAIT, WAIT), plain=True)) as rest,
    ):
        yield rest


@pytest.mark.parametrize(
    ("body", "text"),
    [(b"o\n", "o\n"), (b"", ""), (b'a["x"]', 'a["x"]'), (b"\xffa", "\N{REPLACEMENT CHARACTER}a")],
)
def test_an_answer_is_its_text(body, text):
    """JSON or not, UTF-8 or not."""
    with plain(http(200, body)) as rest:
        assert [rest.ask("POST", "/x").body for _ in range(2)] == [text, text]


def test_an_answer_without_a_body_is_none():
    """204 has no text either."""
    with plain(http(204, b"")) as rest:
        assert rest.ask("POST", "/x", ["a"], expected=(204,)).body is None


def test_a_list_is_sent_as_json():
    """That is how SockJS takes messages; and nobody's key goes with it."""
    got = []
    with plain(http(204, b""), got) as rest:
        rest.ask("POST", "/x", ["a", json.dumps({"b": 1})], expected=(204,))
    head, _, body = b"".join(got).partition(b"\r\n\r\n")
    assert json.loads(body) == ["a", '{"b": 1}']
    assert KEY.encode() not in head
    assert b"x-api-key" not in head.lower()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http(200, b" " * (BODY_LIMIT + 1)), Kind.ODD),
        (http(302, b"", "Location: http://127.0.0.1:1/"), Kind.ODD),
        (http(404, b"gone"), Kind.DOWN),
        (http(502, b""), Kind.DOWN),
        (b"Not found\r\n", Kind.DOWN),
    ],
    ids=["long", "redirect", "404", "502", "no HTTP"],
)
def test_a_failure_is_the_same_trouble(answer, kind):
    """Text or JSON: what is no good answer is none."""
    with plain(answer) as rest, pytest.raises(Trouble) as caught:
        rest.ask("POST", "/x")
    assert caught.value.kind is kind
