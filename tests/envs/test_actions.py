"""Reading actions is total and linear; what experts write is read back as meant."""

import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trace_gym.envs.actions import (
    HERMES,
    MAX_BODY_CHARS,
    MAX_JSON_DEPTH,
    SEARCH_R1,
    Answer,
    Call,
    Malformed,
    check_arguments,
    format_answer,
    format_call,
    format_tool_result,
    parse_action,
    plain_text,
)

CALL = '<tool_call>{"name":"calculator","arguments":{"expression":"3*4"}}</tool_call>'
THREE_TIMES_FOUR = Call("calculator", {"expression": "3*4"})


def call(body: str) -> str:
    return f"<tool_call>{body}</tool_call>"


def problem(text: str) -> str:
    action = parse_action(text)
    assert isinstance(action, Malformed)
    assert action.message and "\n" not in action.message
    return action.message


def test_reads_calls_and_answers() -> None:
    assert parse_action(CALL) == THREE_TIMES_FOUR
    assert parse_action(f"First I multiply.\n{CALL}\n") == THREE_TIMES_FOUR
    assert parse_action('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>') == Call("f", {})
    assert parse_action("so <answer> 12 </answer>") == Answer("12")


@pytest.mark.parametrize(("value", "text"), [('" 12 "', "12"), ("12", "12"), ("0.5", "0.5"), ("-3", "-3")])
def test_the_answer_tool_is_an_answer(value: str, text: str) -> None:
    assert parse_action(call(f'{{"name":"answer","arguments":{{"answer":{value}}}}}')) == Answer(text)


@pytest.mark.parametrize(
    "arguments", ["{}", '{"answer":""}', '{"answer":true}', '{"answer":[1]}', '{"answer":"1","b":2}']
)
def test_the_answer_tool_takes_one_argument(arguments: str) -> None:
    assert "answer" in problem(call(f'{{"name":"answer","arguments":{arguments}}}'))


def test_the_first_closed_tag_wins() -> None:
    assert parse_action(f"{CALL}<answer>1</answer>") == THREE_TIMES_FOUR
    assert parse_action(f"<answer>1</answer>{CALL}") == Answer("1")
    assert parse_action(f"<answer> hm {CALL}") == THREE_TIMES_FOUR
    assert isinstance(parse_action(call("<answer>1</answer>")), Malformed)  # the outer tag is the action


@pytest.mark.parametrize(
    "text",
    [
        "<think><answer>1</answer></think><answer>2</answer>",
        "<answer>1</answer></think><answer>2</answer>",  # the prompt opened the thought
        "<think>a</think><answer>2</answer><think>b</think>",
        "<think><think>a</think><answer>2</answer>",
        "<answer>2</answer><think>never closed <answer>1</answer>",
        "<think></think></think><answer>2</answer>",
    ],
)
def test_thought_is_no_action(text: str) -> None:
    assert parse_action(text) == Answer("2")


@pytest.mark.parametrize(
    "text", ["<think><answer>1</answer>", f"{CALL}</think>", f"<think>{CALL}</think>done"]
)
def test_thought_alone_is_malformed(text: str) -> None:
    assert "no action" in problem(text)


def test_messages_say_what_to_write() -> None:
    assert "<tool_call>" in problem("") and "<answer>" in problem("12")
    assert "</answer>" in problem("<answer>12")
    assert "</tool_call>" in problem('<tool_call>{"name":"f","arguments":{}}')
    assert "valid JSON" in problem(call("{name: f}")) and "character 1" in problem(call("{name: f}"))
    assert "empty" in problem("<answer> \n </answer>")
    assert str(MAX_BODY_CHARS) in problem(f"<answer>{'1' * (MAX_BODY_CHARS + 1)}</answer>")
    assert str(MAX_BODY_CHARS) in problem(call(" " * (MAX_BODY_CHARS + 1)))


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ("[]", "keys"),
        ("null", "keys"),
        ('{"name":"f"}', "keys"),
        ('{"name":"f","parameters":{}}', "keys"),
        ('{"name":"f","arguments":{},"id":1}', "keys"),
        ('{"name":"f","arguments":null}', "object, not null"),
        ('{"name":"f","arguments":"{}"}', "object, not string"),
        ('{"name":"","arguments":{}}', "name"),
        ('{"name":"a b","arguments":{}}', "name"),
        ('{"name":3,"arguments":{}}', "name"),
        ('{"name":"f","name":"g","arguments":{}}', "twice"),
        ('{"name":"f","arguments":{"a":1,"a":2}}', "twice"),
        ('{"name":"f","arguments":{"\\ud800":1,"\\ud801":2}}', "twice"),
        ('{"name":"f","arguments":{"a":NaN}}', "NaN"),
        ('{"name":"f","arguments":{"a":-Infinity}}', "Infinity"),
        ('{"name":"f","arguments":{"a":1e999}}', "too large"),
        ('{"name":"f","arguments":{"a":9223372036854775808}}', "64 bits"),
        ('{"name":"f","arguments":{"a":' + "9" * 5000 + "}}", "64 bits"),
        ('{"name":"f","arguments":{"a":' + "[" * 4000 + "]" * 4000 + "}}", "deep"),
        ('{"name":"f","arguments":{"a":' + "[" * 16 + "]" * 16 + "}}", "deep"),
        ("[" * 16000, "deep"),
    ],
)
def test_malformed_calls(body: str, hint: str) -> None:
    assert hint in problem(call(body))


def test_what_is_just_allowed() -> None:
    deep = "[" * (MAX_JSON_DEPTH - 2) + "]" * (MAX_JSON_DEPTH - 2)
    assert isinstance(parse_action(call('{"name":"f","arguments":{"a":' + deep + "}}")), Call)
    assert parse_action(call('{"name":"f","arguments":{"a":-9223372036854775808}}')) == Call(
        "f", {"a": -(2**63)}
    )
    assert parse_action(call('{"name":"f","arguments":{"a":"line\nbreak"}}')) == Call(
        "f", {"a": "line\nbreak"}
    )


def test_surrogates_and_control_characters_are_replaced() -> None:
    assert parse_action("<answer>1\ud800\x002\x1b</answer>") == Answer("1\ufffd\ufffd2\ufffd")
    assert parse_action(call('{"name":"f","arguments":{"\\u0000":["\\ud800\\u001b"]}}')) == Call(
        "f", {"\ufffd": ["\ufffd\ufffd"]}
    )
    assert parse_action(call('{"name":"f","arguments":{"a":"\\ud83d\\ude00"}}')) == Call(
        "f", {"a": "\U0001f600"}
    )


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<tool_call>",
        "</tool_call>",
        "<",
        "[",
        '{"a":',
        "\\",
        '"',
        "\ud800",
    ],
)
@pytest.mark.parametrize(
    "frame", ["{}", "<tool_call>{}", "<answer>{}", "<tool_call>{}</tool_call>", "{}</think>"]
)
def test_a_megabyte_takes_linear_time(piece: str, frame: str) -> None:
    text = frame.replace("{}", piece * (2**20 // len(piece)))
    start = time.process_time()
    parse_action(text)
    assert time.process_time() - start < 1.0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<tool_call>",
        "</tool_call>",
        CALL,
        '{"name":',
        '"arguments":{}',
        "}",
    ]
)


@given(
    st.lists(pieces | st.text(max_size=8) | st.characters(categories=["Cs", "Cc"]), max_size=12).map("".join)
)
def test_every_string_is_read(text: str) -> None:
    action = parse_action(text)
    assert isinstance(action, Call | Answer | Malformed)
    if isinstance(action, Answer):
        assert action.text == action.text.strip() != ""
        action.text.encode()


def test_thousands_of_random_and_damaged_strings() -> None:
    draw = random.Random(1)
    alphabet = [
        *'<>/{}[]",:\\ 01aeE.-\n\0\ud800é',
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        CALL,
        "NaN",
    ]
    seen = []
    for _ in range(20_000):
        text = list(CALL) if draw.random() < 0.5 else []
        for _ in range(draw.randrange(20)):
            at = draw.randrange(len(text) + 1)
            text[at : at + draw.randrange(3)] = draw.choices(alphabet, k=draw.randrange(4))
        seen.append(type(parse_action("".join(text))))
    assert all(seen.count(kind) > 100 for kind in (Call, Answer, Malformed))


def strings(value: object) -> Iterator[str]:
    """Every string in plain JSON data, keys included, as it is before it is escaped."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


@given(
    st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    st.dictionaries(st.text(max_size=5), json_values, max_size=4),
)
@example(name="f", arguments={"\x0c": None})
def test_calls_are_read_back(name: str, arguments: dict[str, object]) -> None:
    try:
        text = format_call(name, arguments)
    except ValueError:
        assert name == "answer" or not "".join(strings(arguments)).isprintable()
        return
    if name != "answer":
        assert parse_action(text) == Call(name, arguments)


def test_the_canonical_texts() -> None:
    assert format_call("calculator", {"expression": "3*4"}) == CALL
    assert (
        format_call("f", {"q": "x < 3, é"})
        == '<tool_call>{"name":"f","arguments":{"q":"x < 3, é"}}</tool_call>'
    )
    for trap in ("</tool_call>", "<think>", "</think><answer>1</answer>"):
        assert parse_action(f"thought {format_call('f', {'q': trap})}") == Call("f", {"q": trap})
    assert format_answer("12") == "<answer>12</answer>"


@pytest.mark.parametrize("answer", ["", " ", "a</answer>", "<think>", "</think>b", "\ud800"])
def test_an_answer_that_cannot_be_written_is_refused(answer: str) -> None:
    with pytest.raises(ValueError):
        format_answer(answer)


@pytest.mark.parametrize(
    "arguments", [{"a": float("nan")}, {"a": 2**63}, {"a": "\x00"}, {"a": "x" * MAX_BODY_CHARS}]
)
def test_a_call_that_cannot_be_read_back_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        format_call("f", arguments)


def test_tool_results() -> None:
    assert format_tool_result(" 12\n") == "12"
    assert format_tool_result("a\x00b\ud800\tc\nd") == "a\ufffdb\ufffd\tc\nd"
    assert format_tool_result(" ") == "(no output)"


def test_another_codec_adds_a_tag() -> None:
    tags = {**HERMES, "search": lambda body: Call("search", {"query": body.strip()})}
    assert parse_action("I look. <search> who? </search>", tags=tags) == Call("search", {"query": "who?"})
    assert parse_action(CALL, tags=tags) == THREE_TIMES_FOUR
    assert "no action" in problem("<search>who?</search>")


SCHEMA = {
    "type": "object",
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "number"},
        "i": {"type": "integer"},
        "b": {"type": "boolean"},
        "l": {"type": "array"},
        "o": {"type": ["object", "null"]},
        "e": {"enum": ["up", 1]},
        "any": {},
    },
    "required": ["s"],
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"s": ""},
        {"s": "", "n": 1, "i": 2, "b": False, "l": [], "o": {}, "e": "up", "any": None},
        {"s": "", "n": 1.5, "i": 2.0, "o": None, "e": 1},
    ],
)
def test_good_arguments(arguments: dict[str, object]) -> None:
    assert check_arguments(SCHEMA, arguments) is None


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({}, "'s' is missing"),
        ({"s": 1}, "'s' must be of type string, not integer"),
        ({"s": "", "n": "1"}, "'n' must be of type number, not string"),
        ({"s": "", "n": True}, "'n' must be of type number, not boolean"),
        ({"s": "", "i": 1.5}, "'i' must be of type integer, not number"),
        ({"s": "", "i": False}, "'i' must be of type integer, not boolean"),
        ({"s": "", "b": 1}, "'b' must be of type boolean, not integer"),
        ({"s": "", "l": {}}, "'l' must be of type array, not object"),
        ({"s": "", "o": []}, "'o' must be of type object or null, not array"),
        ({"s": "", "e": True}, "'e' must be one of: up, 1"),
        ({"s": "", "z": 1}, "unknown argument 'z'; the arguments are: s, n, i, b, l, o, e, any"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], hint: str) -> None:
    message = check_arguments(SCHEMA, arguments)
    assert message is not None and hint in message


def test_a_tool_without_arguments() -> None:
    assert check_arguments({}, {}) is None
    assert check_arguments({}, {"a": 1}) == "unknown argument 'a'; the arguments are: none"


# ---- Search-R1's tags ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think>hm</think><search> who was Ann? </search>", Call("search", {"query": "who was Ann?"})),
        ("<search>a</search><answer>b</answer>", Call("search", {"query": "a"})),
        ("<answer>b</answer><search>a</search>", Answer("b")),
        ('<tool_call>{"name":"open","arguments":{"title":"<search>x</search>"}}</tool_call>',
         Call("open", {"title": "<search>x</search>"})),
    ],
)  # fmt: skip
def test_search_tags_are_a_call_of_search(text: str, action: object) -> None:
    assert parse_action(text, tags=SEARCH_R1) == action


@given(st.text(alphabet='<>/searchanwtool_c {}"\ud800\x00', max_size=80))
def test_reading_search_tags_is_total(text: str) -> None:
    for body in (text, f"<search>{text}</search>", f"<search>{text}"):
        action = parse_action(body, tags=SEARCH_R1)
        if isinstance(action, Call):
            str(action.arguments).encode()


def test_empty_and_open_search_tags_are_told() -> None:
    for text, part in (("<search> </search>", "the query is empty"), ("<search>a", "<search> is not closed")):
        action = parse_action(text, tags=SEARCH_R1)
        assert isinstance(action, Malformed) and part in action.message


# ---- plain text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Done.", "Done."),
        (" two\nlines\x00 ", "two\nlines\ufffd"),
        ("<think>secret <answer></think> It is done", "It is done"),
        ("<think>never closed", ""),
        ("", ""),
        ("<tool_call>{}", ""),
        ("almost <answer >", ""),
        ("</tool_call>", ""),
        ("<b>bold</b>", "<b>bold</b>"),
    ],
)
def test_plain_text_is_what_was_said_and_not_meant_as_an_action(text: str, said: str) -> None:
    assert plain_text(text) == said


@given(st.text())
def test_text_with_an_action_is_never_plain(text: str) -> None:
    if not isinstance(parse_action(text), Malformed):
        assert plain_text(text) == ""
