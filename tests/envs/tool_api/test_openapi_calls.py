from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.env import Tool
from trace_gym.envs.tool_api.openapi_calls import Unusable, request_of, shown, text_of
from trace_gym.envs.tool_api.openapi_document import Operation, Parameter

TOOL = Tool(name="t", description="", parameters={})
OPERATION = Operation(
    tool=TOOL,
    method="GET",
    path="/a/{x}/b{y}.json",
    parameters=(
        Parameter("x", "path", True),
        Parameter("y", "path", True),
        Parameter("q", "query", True),
        Parameter("l", "query", False),
    ),
    has_body=True,
)


def target(**arguments: Any) -> str:
    return request_of(OPERATION, {"x": "1", "y": "2", **arguments}).target


def test_values_in_a_url() -> None:
    assert target() == "/a/1/b2.json"
    assert target(x="ü ?#&=+;%", y=3.0) == "/a/%C3%BC%20%3F%23%26%3D%2B%3B%25/b3.json"
    assert target(q=True, l=[1, "a,b", False]) == "/a/1/b2.json?q=true&l=1,a%2Cb,false"
    assert target(q=["a", "b&c=d"], l=[]) == "/a/1/b2.json?q=a&q=b%26c%3Dd"
    assert target(q=None) == "/a/1/b2.json"
    assert target(x=-1.5, q="") == "/a/-1.5/b2.json?q="
    assert target(x="...", y="..") == "/a/.../b...json"


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../../admin", "a/b", "a\\b", "%2e%2e", "%2E%2e%2f", "%252e%252e%252fadmin", "%25252f", "a%2Fb",
     "a%5cb", "x\r\nHost: evil", "%0d%0a", "\0", "x" * 1001, ["a"], {"a": 1}, None],
)  # fmt: skip
def test_path_values_that_are_refused(value: Any) -> None:
    with pytest.raises(Unusable) as caught:
        target(x=value)
    assert "\n" not in str(caught.value)


def test_values_that_make_dots_together_are_refused() -> None:
    twins = Operation(
        tool=TOOL,
        method="GET",
        path="/a/{x}{y}",
        parameters=(Parameter("x", "path", True), Parameter("y", "path", True)),
        has_body=False,
    )
    for x, y in ((".", "."), ("%2e", "."), (".", "%2E")):
        with pytest.raises(Unusable):
            request_of(twins, {"x": x, "y": y})


VALUE = st.text(max_size=20) | st.sampled_from(
    ["{y}", "http://evil@127.0.0.1/", "//evil", "?a=b#c", "\ud800", "..;", "@", ":"]
)


@given(VALUE, VALUE, st.lists(VALUE, max_size=3) | VALUE, st.lists(VALUE, max_size=3))
def test_whatever_the_arguments_hold_the_structure_stays(x: Any, y: Any, q: Any, values: Any) -> None:
    try:
        found = target(x=x, y=y, q=q, l=values)
    except Unusable:
        return
    assert found.isascii()
    assert found.isprintable()
    assert " " not in found
    place = urlsplit("http://host" + found)
    assert (place.netloc, place.fragment) == ("host", "")
    first, a, one, two = place.path.split("/")
    assert (first, a) == ("", "a")
    clean = [text.encode("utf-8", "replace").decode() for text in (x, y)]
    assert [unquote(one), unquote(two)] == [clean[0], f"b{clean[1]}.json"]
    assert {name for name, _ in parse_qsl(place.query, keep_blank_values=True)} <= {"q", "l"}


def test_slots_in_values_are_not_filled() -> None:
    assert target(x="{y}", y="2") == "/a/%7By%7D/b2.json"


def test_a_body() -> None:
    request = request_of(OPERATION, {"x": "1", "y": "2", "body": {"a": ["ü", None]}})
    assert request.encoded_body() == b'{"a": ["\\u00fc", null]}'
    assert request_of(OPERATION, {"x": "1", "y": "2", "body": None}).encoded_body() == b"null"
    assert request_of(OPERATION, {"x": "1", "y": "2"}).encoded_body() is None


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("application/json", b'{ "a" : [1,\n2] }', '{"a":[1,2]}'),
        ("application/problem+json", b'{ "a": "\\u00fc" }', '{"a":"ü"}'),
        ("", b"[ 1 ]", "[1]"),
        ("application/json", b"{broken", "{broken"),
        ("application/json", b"[" * 5000, "[" * 5000),
        ("application/json", b"1" * 400, "1" * 400),
        ("application/json", b"\xff\xfe{", "\ufffd\ufffd{"),
        ("text/html", b"<p>\xff</p>", "<p>\ufffd</p>"),
        ("application/xml", b"<a/>", "<a/>"),
        ("text/plain", b"x" * 70_000, "x" * 65_536),
        ("image/png", b"\x89PNG", None),
        ("application/octet-stream", b"", None),
        ("application/json" * 1000, b"", None),
    ],
)
def test_text_of_an_answer(kind: str, body: bytes, text: str | None) -> None:
    assert text_of(kind, body) == text


@pytest.mark.parametrize(
    ("status", "text", "too_large", "observation"),
    [
        (200, "fine", False, "fine"),
        (204, "", False, "(done, HTTP 204)"),
        (200, None, False, "the answer is image/png, which is no text"),
        (200, "", True, "error: HTTP 200: the answer is too large to be read; ask for less"),
        (302, "x", False, "error: HTTP 302: a redirect, which is not followed"),
        (404, '{"message":"no"}', False, 'error: HTTP 404: {"message":"no"}'),
        (501, " ", False, "error: HTTP 501"),
    ],
)
def test_what_the_agent_sees(status: int, text: Any, too_large: bool, observation: str) -> None:
    assert shown({"status": status, "type": "image/png", "text": text, "too_large": too_large}) == observation
