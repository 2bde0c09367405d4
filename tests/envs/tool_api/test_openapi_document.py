import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.todo_service import DOCUMENT
from trace_gym.env import Tool
from trace_gym.envs.tool_api.openapi_document import Operation, operations, read_document, read_yaml
from trace_gym.errors import ConfigError


def read(document: Any, **options: Any) -> dict[str, Operation]:
    settings: dict[str, Any] = {"only": None, "effects": {}, "headers": (), "query": (), **options}
    return operations(document, **settings)


def one(operation: Any, path: str = "/x", **more: Any) -> dict[str, Operation]:
    """A document with one GET."""
    return read({"paths": {path: {"get": {"operationId": "x", **operation}}}, **more})


def query(schema: Any, **more: Any) -> Any:
    return {"parameters": [{"name": "q", "in": "query", "schema": schema, **more}]}


def test_operations_become_tools() -> None:
    found = read(DOCUMENT)
    assert list(found) == ["listTodos", "addTodo", "getTodo", "deleteTodo", "searchTodos"]
    assert [op.tool.effect for op in found.values()] == [
        "recorded",
        *["irreversible"] * 1,
        "recorded",
        *["irreversible"] * 2,
    ]
    assert found["getTodo"].tool == Tool(
        name="getTodo",
        description="One to-do, by its id.",
        parameters={"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
        effect="recorded",
    )
    assert found["listTodos"].tool.parameters == {
        "type": "object",
        "properties": {"done": {"type": "boolean"}, "tags": {"type": "array", "items": {"type": "string"}}},
        "required": [],
    }
    assert found["addTodo"].tool.parameters == {
        "type": "object",
        "properties": {
            "body": {
                "type": "object",
                "required": ["title"],
                "properties": {
                    "title": {"type": "string", "description": "What to do."},
                    "due": {"type": ["string", "null"], "default": None},
                    "parts": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}},
                    },
                },
                "additionalProperties": False,
            }
        },
        "required": ["body"],
    }
    json.dumps(found["addTodo"].tool.schema())


def test_effects_and_choices_of_the_configuration() -> None:
    found = read(DOCUMENT, only=["searchTodos", "getTodo"], effects={"searchTodos": "recorded"})
    assert {name: op.tool.effect for name, op in found.items()} == {
        "getTodo": "recorded",
        "searchTodos": "recorded",
    }
    assert "done" not in read(DOCUMENT, query=["done"])["listTodos"].tool.parameters["properties"]
    for options in ({"only": ["listTodo"]}, {"effects": {"listTodo": "recorded"}}):
        with pytest.raises(
            ConfigError, match="no operation is called 'listTodo'; there are addTodo, deleteTodo"
        ):
            read(DOCUMENT, **options)


def test_names_are_made_where_there_are_none() -> None:
    document = {"paths": {"/a/{b}/c-d": {"get": {"parameters": [{"name": "b", "in": "path", "schema": {}}]}}}}
    assert list(read(document)) == ["get_a_b_c-d"]
    assert list(one({"operationId": "pets/list all"})) == ["pets_list_all"]


RECURSIVE = {
    "components": {
        "schemas": {"Node": {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}}}
    }
}
LOOP = {
    "components": {
        "schemas": {"A": {"$ref": "#/components/schemas/B"}, "B": {"$ref": "#/components/schemas/A"}}
    }
}
WIDE = {
    "components": {
        "schemas": {
            f"L{n}": {
                "type": "object",
                "properties": {str(i): {"$ref": f"#/components/schemas/L{n + 1}"} for i in range(9)},
            }
            for n in range(9)
        }
        | {"L9": {"type": "string"}}
    }
}


def body(schema: Any, kind: str = "application/json") -> Any:
    return {"requestBody": {"content": {kind: {"schema": schema}}}}


@pytest.mark.parametrize(
    ("operation", "more", "reason"),
    [
        (query({"$ref": "other.yaml#/X"}), {}, "leads out of the document"),
        (query({"$ref": "https://evil.example/x.json"}), {}, "leads out of the document"),
        (query({"$ref": "#/components/none"}), {}, "leads nowhere"),
        (query({"$ref": 7}), {}, "leads out of the document"),
        (query({"$ref": "#/components/schemas/A"}), LOOP, "through more than 32 others"),
        (body({"$ref": "#/components/schemas/Node"}), RECURSIVE, "refers to itself"),
        (body({"$ref": "#/components/schemas/L0"}), WIDE, "or is too large"),
        (body({}, "multipart/form-data"), {}, "its body is multipart/form-data, not application/json"),
        (body({}, "application/x-www-form-urlencoded"), {}, "not application/json"),
        ({"requestBody": {}}, {}, "its body is not described"),
        (query({"type": "object"}), {}, "neither text, number nor true/false"),
        (query({"type": "array", "items": {"type": "object"}}), {}, "neither text"),
        (query({"anyOf": [{"type": "string"}]}), {}, "neither text"),
        (query({"type": "string"}, style="deepObject"), {}, "the style 'deepObject'"),
        (query({"type": "string"}, allowReserved=True), {}, "allowReserved"),
        (query({"type": "file"}), {}, "the type 'file' is none"),
        ({"parameters": [{"name": "q", "in": "query", "content": {}}]}, {}, "no schema of its own"),
        ({"parameters": [{"name": "q", "in": "body", "schema": {}}]}, {}, "is in 'body'"),
        ({"parameters": [{"name": "X-A", "in": "header", "required": True}]}, {}, "needs the header 'X-A'; give it under"),
        ({"parameters": [{"name": "c", "in": "cookie", "required": True}]}, {}, "needs the cookie 'c'"),
        ({"parameters": [{"in": "query"}]}, {}, "a parameter has no name"),
        ({"parameters": {"a": 1}}, {}, "not a list"),
        ({"parameters": [{"name": "x", "in": "path", "schema": {}}]}, {}, "the slots"),
        ({"servers": [{"url": "https://evil.example"}]}, {}, "servers of its own"),
        ({"operationId": "answer"}, {}, "cannot be called 'answer'"),
        ({"operationId": "???"}, {}, "cannot be called ''"),
        (query({"enum": 7}), {}, "an enum is not a list"),
        (body({"required": [["x"]]}), {}, "'required' is not a list"),
        (body({"default": float("nan")}), {}, "that JSON does not have"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(operation: Any, more: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        one(operation, **more)
    assert "the operation" in str(caught.value)
    assert "list the ones you want under 'operations'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["x", "", "/a?b", "/a#b", "/../a", "/%2e%2e/a", "/a b", "/a\\b", "/a/{b", "/{a}/{a}", "/ä", "/a\r\nX: y"],
)
def test_paths_that_are_none(path: str) -> None:
    parameters = [{"name": "a", "in": "path", "schema": {"type": "string"}}] if "{a}" in path else []
    with pytest.raises(ConfigError, match="its path"):
        one({"parameters": parameters}, path)


def test_a_header_that_the_configuration_sets_is_not_the_agents() -> None:
    operation = {
        "parameters": [{"name": "X-Key", "in": "header", "required": True, "schema": {"type": "string"}}]
    }
    document = {"paths": {"/x": {"get": {"operationId": "x", **operation}}}}
    assert read(document, headers=["x-key"])["x"].tool.parameters["properties"] == {}


def test_a_parameter_of_the_operation_replaces_the_paths() -> None:
    shared = {"name": "q", "in": "query", "schema": {"type": "string"}}
    item = {"parameters": [shared], "get": {"operationId": "x", **query({"type": "integer"}, required=True)}}
    assert read({"paths": {"/x": item}})["x"].tool.parameters["properties"] == {"q": {"type": "integer"}}


# ---- files ---------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(
        "openapi: 3.1.0\npaths:\n  /x:\n    get:\n      responses: {200: {description: ok}}\n      since: 2020-01-01\n"
    )
    document = read_document(path)
    assert document["paths"]["/x"]["get"]["since"] == "2020-01-01"
    assert list(read(document)) == ["get_x"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("d.yaml", "a: [", "not valid YAML"),
        ("d.json", "{", "not valid JSON"),
        ("d.json", "[" * 100_000, "not valid JSON"),
        ("d.yaml", "[" * 5000, "not valid YAML"),
        ("d.yaml", "!!python/object/apply:os.system ['touch /tmp/owned']", "not valid YAML"),
        ("d.yaml", "a: 1", "no OpenAPI document"),
        ("d.yaml", "swagger: '2.0'\npaths: {}", "version '2.0'; 3.0 and 3.1 are read: convert it"),
        ("d.yaml", "openapi: 4.0.0\npaths: {}", "version '4.0.0'"),
    ],
)
def test_files_that_are_none(name: str, text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_document(path)
    assert "\n" not in str(caught.value)


def test_other_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*check the path"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_yaml(tmp_path / "b.yaml")
    (tmp_path / "l.yaml").write_bytes(b"#" * (9 << 20))
    with pytest.raises(ConfigError, match="more than"):
        read_yaml(tmp_path / "l.yaml")


@pytest.mark.parametrize(("depth", "reason"), [(5, "or is too large"), (11, "aliases stand for more than")])
def test_a_document_that_swells_when_its_aliases_are_followed(
    tmp_path: Path, depth: int, reason: str
) -> None:
    """A schema too large for a tool is refused as that; what is larger still, before anybody walks it."""
    lines = ["a0: &a0 {type: string}"]
    lines += [f"a{n}: &a{n} {{anyOf: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, depth + 1)]
    schema = "paths: {/x: {post: {requestBody: {content: {application/json: {schema: *aN}}}}}}".replace(
        "N", str(depth)
    )
    path = tmp_path / "d.yaml"
    path.write_text("\n".join(["openapi: 3.0.0", *lines, schema]))
    with pytest.raises(ConfigError, match=reason):
        read(read_document(path))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


PLACES = [
    place for place in _places(DOCUMENT) if place[:1] in (("paths",), ("components",)) and len(place) > 1
]
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 7, -1.5, "", "x", "#/paths", [], ["x"], {}, {"$ref": "#/paths"}, {"a": 1}, [[]], [{}]]
)


@given(st.lists(st.tuples(st.sampled_from(PLACES), JUNK), min_size=1, max_size=2))
def test_a_mutilated_document_is_read_or_refused(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    document = copy.deepcopy(DOCUMENT)
    for place, junk in changes:
        target: Any = document
        for key in place[:-1]:
            target = target[key] if isinstance(target, dict) and key in target else None
        if isinstance(target, dict):
            target[place[-1]] = junk
    try:
        for operation in read(document).values():
            json.dumps(operation.tool.schema(), allow_nan=False)
    except ConfigError:
        pass
