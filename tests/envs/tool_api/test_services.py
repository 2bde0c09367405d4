from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from trace_gym.envs.actions import check_arguments
from trace_gym.envs.tool_api.office import (
    Booking,
    Contact,
    Event,
    File,
    Message,
    Office,
    Order,
    Payment,
    Scene,
    Trip,
    balance_of,
)
from trace_gym.envs.tool_api.services import SERVICES, TOOLS, Result, call

SCENE = Scene(
    today=3,
    money=100,
    trips=(Trip(301, "Rome", 5, 9, 40), Trip(302, "Rome", 5, 7, 90)),
    fresh=(901, 902, 903),
)
PEOPLE = (Contact(101, "Ann Berg", "Oslo"), Contact(102, "Ann Cole", "Rome"))
REVIEW = Event(121, "review", 4, 10)
OFFICE = Office(
    contacts=PEOPLE,
    files=(File(111, "plan", "drafts"), File(112, "plan", "archive")),
    events=(REVIEW,),
    orders=(Order(131, "lamp", 2, "confirmed"),),
    bookings=(Booking(141, 302, "confirmed"),),
)


def do(name: str, /, office: Office = OFFICE, **arguments: Any) -> Result:
    return call(office, SCENE, name, arguments)


def refused(name: str, /, office: Office = OFFICE, **arguments: Any) -> str:
    result = call(office, SCENE, name, arguments)
    assert result.text.startswith("error: ") and result.office is office and result.effect == "pure"
    return result.text


@pytest.mark.parametrize(
    ("name", "arguments", "text", "shown"),
    [
        ("find_contact", {"name": "ann"}, "101 Ann Berg Oslo; 102 Ann Cole Rome", (101, 102)),
        ("find_contact", {"name": "Zoe"}, "none", ()),
        ("find_file", {"name": "plan"}, "111 plan in drafts; 112 plan in archive", (111, 112)),
        ("find_event", {"title": "view"}, "121 review day 4 at 10", (121,)),
        ("find_order", {"item": "lamp"}, "131 2 lamp confirmed", (131,)),
        ("find_trips", {"city": "Rome", "day": 5}, "301 at 9 for 40; 302 at 7 for 90", (301, 302)),
        ("find_trips", {"city": "Rome", "day": 6}, "none", ()),
        ("find_booking", {"city": "Rome"}, "141 day 5 at 7 confirmed", (141,)),
        ("balance", {}, "balance 100", (0,)),
    ],
)  # fmt: skip
def test_lookups_tell_and_change_nothing(
    name: str, arguments: dict[str, Any], text: str, shown: tuple[int, ...]
) -> None:
    assert do(name, **arguments) == Result(OFFICE, text, "pure", shown)


@pytest.mark.parametrize(
    ("name", "arguments", "changed"),
    [
        ("add_contact", {"name": "Leo", "city": "York"}, {"contacts": (*PEOPLE, Contact(901, "Leo", "York")), "made": 1}),
        ("update_contact", {"contact": 102, "city": "York"}, {"contacts": (PEOPLE[0], Contact(102, "Ann Cole", "York"))}),
        ("move_file", {"file": 111, "folder": "inbox"}, {"files": (File(111, "plan", "inbox"), OFFICE.files[1])}),
        ("share_file", {"file": 111, "contact": 102}, {"files": (File(111, "plan", "drafts", ("Ann Cole",)), OFFICE.files[1])}),
        ("add_event", {"title": "lunch", "day": 4, "hour": 12}, {"events": (REVIEW, Event(901, "lunch", 4, 12)), "made": 1}),
        ("move_event", {"event": 121, "day": 5, "hour": 10}, {"events": (Event(121, "review", 5, 10),)}),
        ("cancel_event", {"event": 121}, {"events": ()}),
        ("send_message", {"contact": 101, "text": "hello"}, {"messages": (Message("Ann Berg", "hello"),)}),
        ("place_order", {"item": "pen", "quantity": 3}, {"orders": (*OFFICE.orders, Order(901, "pen", 3, "open")), "made": 1}),
        ("cancel_order", {"order": 131}, {"orders": (Order(131, "lamp", 2, "cancelled"),)}),
        ("pay", {"contact": 101, "amount": 100}, {"payments": (Payment("Ann Berg", 100),)}),
        ("book_trip", {"trip": 301}, {"bookings": (*OFFICE.bookings, Booking(901, 301, "open")), "made": 1}),
        ("cancel_booking", {"booking": 141}, {"bookings": (Booking(141, 302, "cancelled"),)}),
    ],
)  # fmt: skip
def test_what_changes_is_what_was_asked_for(
    name: str, arguments: dict[str, Any], changed: dict[str, Any]
) -> None:
    result = do(name, **arguments)
    assert result.effect == "stateful" and result.office == replace(OFFICE, **changed)


def test_what_cannot_be_done_is_said_and_not_done() -> None:
    for name, tool in TOOLS.items():  # no id of anything
        properties = tool.parameters["properties"]
        ids = [key for key in properties if key in ("contact", "file", "event", "order", "booking", "trip")]
        if ids:
            values: dict[str, Any] = {
                key: 7 if schema["type"] == "integer" else "x" for key, schema in properties.items()
            }
            assert "there is no" in refused(name, **values)
    assert "taken by review" in refused("add_event", title="lunch", day=4, hour=10)
    assert "days are 1 to 30" in refused("add_event", title="lunch", day=31, hour=10)
    assert "holds a file plan already" in refused("move_file", file=111, folder="archive")
    assert "is there already" in refused("add_contact", name="ann berg", city="Oslo")
    assert "only what was added today" in refused("remove_contact", contact=101)
    assert "there is no boat" in refused("place_order", item="boat", quantity=1)
    assert "a quantity is 1 to 99" in refused("place_order", item="pen", quantity=0)
    assert "101 is more than the balance of 100" in refused("pay", contact=101, amount=101)
    assert "an amount is 1 or more" in refused("pay", contact=101, amount=-5)
    assert "order 131 is confirmed" in refused("confirm_order", order=131)
    assert "there is a booking of trip 302" in refused("book_trip", trip=302)
    assert "a text has 1 to 200 characters" in refused("send_message", contact=101, text=" ")
    assert "a text has 1 to 200 characters" in refused("send_message", contact=101, text="x" * 201)
    full = replace(OFFICE, made=3)
    assert "too much was made" in refused("place_order", full, item="pen", quantity=1)


def test_an_order_counts_and_costs_once_confirmed_and_comes_back_when_cancelled() -> None:
    opened = do("place_order", item="pen", quantity=9)
    assert opened.text == "order 901 open, costs 18" and balance_of(opened.office, SCENE) == 100
    confirmed = do("confirm_order", opened.office, order=901)
    assert balance_of(confirmed.office, SCENE) == 82
    assert do("cancel_order", confirmed.office, order=901).office == replace(OFFICE, made=1)
    dear = do("place_order", item="printer", quantity=2).office
    assert "120 is more than the balance of 100" in refused("confirm_order", dear, order=901)


def test_a_booking_counts_and_costs_once_confirmed_and_comes_back_when_cancelled() -> None:
    held = do("book_trip", trip=301).office
    confirmed = do("confirm_booking", held, booking=901).office
    assert (balance_of(held, SCENE), balance_of(confirmed, SCENE)) == (100, 60)
    assert do("cancel_booking", confirmed, booking=901).office == replace(OFFICE, made=1)


def test_every_tool_declares_what_it_does() -> None:
    assert {name for names in SERVICES.values() for name in names} == set(TOOLS)
    pure = {name for name, tool in TOOLS.items() if tool.effect == "pure"}
    assert pure == {"balance", *SERVICES["others"], *(name for name in TOOLS if name.startswith("find_"))}


words = st.one_of(st.text(max_size=300), st.sampled_from(["Ann", "plan", "Rome", "pen", "review"]))
numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([101, 111, 121, 131, 141, 301, 4, 5, 10]),
    st.just(101.0),
)


@settings(max_examples=25)
@given(st.data())
def test_no_arguments_that_fit_the_schema_raise(data: st.DataObject) -> None:
    office = OFFICE
    for _ in range(6):
        tool = TOOLS[data.draw(st.sampled_from(sorted(TOOLS)))]
        kinds = {key: schema["type"] for key, schema in tool.parameters["properties"].items()}
        arguments = {key: data.draw(numbers if kind == "integer" else words) for key, kind in kinds.items()}
        assert check_arguments(tool.parameters, arguments) is None
        result = call(office, SCENE, tool.name, arguments)
        assert (result.office is office) == (result.effect == "pure") and len(result.text) < 8192
        assert tool.effect == "stateful" or result.effect == "pure"
        assert all(row.id == int(row.id) for row in result.office.events)
        office = result.office
