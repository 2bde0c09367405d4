"""The viewer's server: who is answered, with which headers, and that nothing but the run's numbers can be asked for."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.viewed import HOSTILE, keep, run_folder, small_tree, with_text

pytest.importorskip("starlette", reason="pip install 'trace-gym[view]'")
from starlette.testclient import TestClient

from trace_gym.errors import ConfigError
from trace_gym.view.app import HEADERS, PAGES, listen, make_app
from trace_gym.view.data import RunReader

NODE = "/api/runs/0/steps/3/trees/0/nodes/0"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    run = run_folder(tmp_path)
    keep(run, 3, small_tree(), with_text(small_tree(), HOSTILE), predicted=[0.5] * 6)
    return TestClient(make_app([run.path]), base_url="http://localhost:8765")


def test_pages_and_answers_carry_every_protection(client: TestClient) -> None:
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    )
    policy += "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
    for path in (*PAGES, "/api/runs", NODE, "/none", "/api/runs/9"):
        answer = client.get(path)
        assert all(answer.headers[name] == value for name, value in HEADERS.items()), path
        assert answer.headers["content-security-policy"] == policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8765", "[::1]:8765"])
def test_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get(NODE, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8765",
        "localhost.evil.example",
        "127.0.0.1.nip.io:8765",
        "localhost@evil.example",
        "evil.example#localhost",
        "0.0.0.0:8765",
        "127.0.0.1:8765:1",
        "localhost:",
        "",
    ],
)
def test_any_other_name_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", NODE, "/none"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421 and "word/1" not in answer.text
        assert answer.headers["content-security-policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_is_read_only(client: TestClient, method: str) -> None:
    for path in (NODE, "/none"):
        answer = client.request(method, path)
        assert answer.status_code == 405 and answer.json()["error"] == "the viewer is read-only"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/_version.py",
        "/static//etc/passwd",
        "/static/",
        "/config.yaml",
        "/api/runs/..%2f..",
        "/api/runs/0/steps/../../config.yaml",
        "/api/runs/0/steps/3%00",
        "/api/runs/0/steps/-1",
        "/api/runs/0/steps/3/trees/0/nodes/1e3",
        "/api/runs/0/steps/" + "9" * 150,
        "/api/runs/0/steps/" + "9" * 5000,
        "/api/runs/0/steps/4",
        "/api/runs/1",
        "/api/runs/0/steps/3/trees/2",
        "/api/runs/0/steps/3/trees/0/nodes/6",
    ],
)
def test_nothing_else_can_be_reached(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]


def test_every_static_file_is_served_and_no_other_kind(client: TestClient) -> None:
    static = {path.name for path in Path(__file__).parents[2].glob("trace_gym/view/static/*")}
    if static:  # a checkout
        assert static == {name for name, _ in PAGES.values()} | {"d3.LICENSE"}
    assert "Permission to use" in (Path(str(_static())) / "d3.LICENSE").read_text()
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


def _static() -> object:
    from importlib.resources import files

    return files("trace_gym.view").joinpath("static")


def test_the_page_names_no_other_host_and_no_inline_script() -> None:
    text = (Path(str(_static())) / "index.html").read_text()
    assert (
        "//" not in text.replace("<!doctype html>", "")
        and "<script>" not in text
        and " on" + "click" not in text
    )
    for name in ("viewer.js", "drawing.js"):
        code = (Path(str(_static())) / name).read_text()
        assert not any(
            word in code
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
        )
        assert ".html(" not in code  # d3's way to markup


def test_hostile_text_travels_as_json_without_a_single_tag(client: TestClient) -> None:
    answer = client.get("/api/runs/0/steps/3/trees/1/nodes/2")
    assert b"<" not in answer.content and answer.content.isascii()
    assert answer.json()["task"] == HOSTILE and answer.headers["content-type"] == "application/json"


def test_an_answer_the_browser_has_is_not_sent_again(client: TestClient, tmp_path: Path) -> None:
    tag = client.get("/api/runs/0").headers["etag"]
    again = client.get("/api/runs/0", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    keep(run := run_folder(tmp_path, "other"), 0, small_tree())
    run.trees_path(0).rename(tmp_path / "run/trees/step-000004.parquet")
    fresh = client.get("/api/runs/0", headers={"if-none-match": tag})
    assert fresh.status_code == 200 and [row["step"] for row in fresh.json()] == [3, 4]


def test_a_corrupt_file_is_said_and_the_rest_goes_on(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "run/trees/step-000005.parquet").write_bytes(b"PAR1 half")
    answer = client.get("/api/runs/0/steps/5")
    assert answer.status_code == 500 and "step-000005.parquet is corrupt" in answer.json()["error"]
    assert str(tmp_path) not in answer.text
    assert client.get(NODE).status_code == 200


def test_a_failure_of_ours_is_guarded_and_tells_no_details(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(reader: RunReader) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(RunReader, "facts", broken)
    answer = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False).get(
        "/api/runs"
    )
    assert answer.status_code == 500 and "secret" not in answer.text and "RuntimeError" in answer.text
    assert all(answer.headers[name] == value for name, value in HEADERS.items())


def test_a_prompt_is_found_by_its_task(client: TestClient) -> None:
    assert client.get("/api/runs/0/places", params={"task": HOSTILE}).json() == [{"step": 3, "tree": 1}]
    assert client.get("/api/runs/0/places").json() == []


def test_mistakes_of_whoever_starts_it_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        make_app([tmp_path])
    with listen(0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match="take another with --port"):
            listen(taken.getsockname()[1])


@pytest.mark.parametrize("ignored", [False, True], ids=["in front", "in the background"])
def test_the_command_serves_until_ctrl_c_and_loads_no_torch(tmp_path: Path, ignored: bool) -> None:
    """A shell starts what it sends to the background with Ctrl-C ignored: no exception tells such a server to end."""
    run = run_folder(tmp_path)
    keep(run, 3, small_tree())
    program = (
        "import atexit, sys; from trace_gym.cli import main;"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); main()"
    )
    if ignored:
        program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);" + program
    command = [sys.executable, "-c", program, "view", str(run.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            rf"{re.escape(str(run.path))} at (http://127\.0\.0\.1:\d+/) ; Ctrl-C ends it\n", line
        )
        assert found, line + process.stderr.read()
        assert httpx2.get(f"{found[1]}api/runs/0").json()[0]["step"] == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read() == "stopped\n" and process.stderr.read() == "False\n"
