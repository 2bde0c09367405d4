"""A small to-do service, its OpenAPI document, and the files that make it a world of tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.local_server import Asked, Told

DOCUMENT: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "To-do", "version": "1"},
    "servers": [{"url": "https://todo.example/v1"}],
    "paths": {
        "/todos": {
            "get": {
                "operationId": "listTodos",
                "summary": "All to-dos.",
                "parameters": [
                    {"name": "done", "in": "query", "schema": {"type": "boolean"}},
                    {"name": "tags", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                ],
            },
            "post": {
                "operationId": "addTodo",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewTodo"}}},
                },
            },
        },
        "/todos/{id}": {
            "parameters": [{"$ref": "#/components/parameters/Id"}],
            "get": {"operationId": "getTodo", "description": "One to-do,\nby its id."},
            "delete": {"operationId": "deleteTodo"},
        },
        "/search": {
            "post": {
                "operationId": "searchTodos",
                "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}},
            }
        },
    },
    "components": {
        "parameters": {"Id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}},
        "schemas": {
            "NewTodo": {
                "type": "object",
                "required": ["title", "created"],
                "properties": {
                    "title": {"type": "string", "description": "What to do."},
                    "created": {"type": "string", "readOnly": True},
                    "due": {"type": "string", "nullable": True, "default": None},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
                },
                "additionalProperties": False,
            },
            "Part": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}},
        },
    },
}

TASKS: list[dict[str, Any]] = [
    {
        "id": "read",
        "question": "What is to-do 1?",
        "answer": ["milk", "Buy milk"],
        "calls": [{"name": "getTodo", "arguments": {"id": "1"}}],
    },
    {
        "id": "add",
        "question": "Look at the list, then add bread to it.",
        "calls": [
            {"name": "listTodos"},
            {"name": "addTodo", "arguments": {"body": {"title": "Buy bread"}}},
        ],
    },
    {"id": "guess", "question": "How many?", "answer": "1", "split": "test"},
]


class Todos:
    """The service: one to-do, and whatever is added."""

    def __init__(self) -> None:
        self.titles = ["Buy milk"]

    def __call__(self, asked: Asked) -> Told:
        if asked.path == "/v1/todos" and asked.method == "POST":
            self.titles.append(asked.json["title"])
            return Told(201, {"id": str(len(self.titles))})
        if asked.path == "/v1/todos":
            return Told(200, {"todos": self.titles, "key": asked.headers.get("X-Key", "")})
        if asked.path == "/v1/search":
            return Told(200, [title for title in self.titles if asked.json.get("q", "") in title])
        if asked.path == "/v1/todos/1":
            return Told(200, '{\n  "id": "1",\n  "title": "Buy milk"\n}')
        return Told(404, {"message": "no such to-do"})


def write_world(folder: Path, url: str, *, tasks: Any = TASKS, **more: Any) -> str:
    """Writes the three files, with `more` settings (None takes one out); the `source` that names them."""
    (folder / "todo.json").write_text(json.dumps(DOCUMENT))
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    setup = {"document": "todo.json", "tasks": "tasks.jsonl", "server": f"{url}/v1", "record": "todo.sqlite"}
    setup = {key: value for key, value in {**setup, **more}.items() if value is not None}
    (folder / "todo.yaml").write_text(yaml.safe_dump(setup))
    return f"openapi:{folder}/todo.yaml"
