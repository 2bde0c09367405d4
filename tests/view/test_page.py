"""The viewer's page in a real browser: what is shown, how it is steered, and that a model's text stays text."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import keep_picture, open_browser
from tests.support.viewed import HOSTILE, big_tree, keep, run_folder, small_tree, with_text
from trace_gym.runs import RunFolder

pytest.importorskip("starlette", reason="pip install 'trace-gym[view]'")
from trace_gym.view.app import listen, make_app, make_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

NAN = float("nan")
NODES = 5000
HOSTILE_NAME = "<img src=x onerror=window.owned=1>"
FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
NAMELESS = """[...document.querySelectorAll("select, input, button")]
  .filter((e) => !e.labels?.length && !e.ariaLabel && !e.textContent).length"""
PICTURES = Path(__file__).parents[2] / "docs/images"
REPORT = Path(__file__).parents[2] / "benchmarks/results/cpu/index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """0: TRACE's; 1: another algorithm's on the same prompt; 2: hostile; 3: a large tree; 4: nothing kept so far."""
    folder = tmp_path_factory.mktemp("runs")
    trace, grpo = run_folder(folder, "first"), run_folder(folder, "second", "grpo")
    hostile, large, bare = (run_folder(folder, name) for name in (HOSTILE_NAME, "large", "bare"))
    calm = small_tree("word/2")
    calm.nodes = calm.nodes[:2]
    keep(
        trace,
        0,
        small_tree("word/1"),
        predicted=[0.9, 0.2, NAN, NAN, NAN, NAN],
        why={"n1": "by prediction: 1 continuation"},
    )
    keep(trace, 7, small_tree("word/1"), calm, small_tree("word/3"), predicted=[0.3, 0.5, NAN, NAN, NAN, NAN])
    trace.append_metrics({"step": 7.0, "success": 0.25, "effective_ratio": 0.5})
    keep(grpo, 5, small_tree("word/3"), small_tree("word/1"))
    keep(
        hostile, 0, with_text(small_tree(), HOSTILE), predicted=[0.5] * 6, why={"n0": HOSTILE, "n1": HOSTILE}
    )
    tree = big_tree(NODES)
    keep(large, 0, tree, predicted=[0.5] * len(tree))
    return [trace, grpo, hostile, large, bare]


@pytest.fixture(scope="module")
def address(runs: list[RunFolder]) -> Iterator[str]:
    with _serving([run.path for run in runs]) as url:
        yield url


class _serving:
    """The viewer in a thread."""

    def __init__(self, runs: list[Path]) -> None:
        self.socket = listen(0)
        self.server = make_server(make_app(runs))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A page on which no script may fail and nothing may be asked of another host."""
    page = browser.new_page(viewport={"width": 1400, "height": 860})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on(
        "request",
        lambda r: wrong.append(r.url) if not r.url.startswith(("http://127.0.0.1:", "data:,")) else None,
    )
    yield page
    page.close()
    assert wrong == []


def open_at(page: "Page", address: str, **words: Any) -> None:
    """Open a deep link and wait until the node asked for is described."""
    page.goto("about:blank")
    page.goto(f"{address}#{'&'.join(f'{name}={value}' for name, value in words.items())}")
    settle(page)


def settle(page: "Page") -> None:
    page.wait_for_selector("#main[aria-busy=false]")


def selected(page: "Page", pane: str = "a") -> str | None:
    return page.get_attribute(f"#pane-{pane} svg", "aria-activedescendant")


def press(page: "Page", *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
        settle(page)


def test_a_deep_link_shows_the_node_with_everything_kept_of_it(page: "Page", address: str) -> None:
    open_at(page, address, run=0, step=0, tree=0, node=1)
    detail = page.inner_text("#detail")
    for text in (
        "node 1, turn 1",
        "0.20",
        "0.50 over 2 draws",
        "-0.33",
        "by prediction: 1 continuation",
        "policy tokens",
    ):
        assert text in detail
    assert "standard errors" in detail and "policy version" in detail
    assert selected(page) == "a-n1"
    assert (page.text_content("#a-n1 .small") or "").startswith("0.20 → 0.50")
    assert "step 0: word/1, 6 nodes, 4 leaves" in page.inner_text("#pane-a h2")
    assert page.locator("#a-n4 path.dot").count() == 1 and page.locator("#a-n2 path.cross").count() == 1


def test_the_newest_step_is_shown_first_and_its_success(page: "Page", address: str) -> None:
    open_at(page, address)
    assert page.input_value("#step") == "7" and "success 0.25, mixed 50 %" in page.inner_text("#progress")
    assert "first" in page.title()


def test_the_keyboard_reaches_everything(page: "Page", address: str) -> None:
    from playwright.sync_api import expect

    open_at(page, address, run=0, step=7, tree=0, node=0)
    walk = {"ArrowRight": "a-n1", "ArrowDown": "a-n4", "ArrowUp": "a-n1", "ArrowLeft": "a-n0"}
    for key, node in walk.items():
        press(page, key)
        assert selected(page) == node, key
    press(page, "f")
    assert selected(page) == "a-n2"  # the first leaf that is not solved
    press(page, "f")
    assert selected(page) == "a-n4"
    press(page, "s")
    assert selected(page) == "a-n0"
    assert "node 0" in page.inner_text("#said")
    press(page, "n")
    assert "tree=1" in page.url and "word/2" in page.inner_text("#pane-a h2")
    press(page, "p", "[")
    assert "step=0" in page.url and page.input_value("#step") == "0"
    page.go_back()
    expect(page.locator("#step")).to_have_value("7")
    settle(page)
    press(page, "ArrowRight", "Enter")
    assert page.locator("#a-n2").count() == 0 and "2 folded" in (page.text_content("#a-n1") or "")
    press(page, "Enter", "/")
    page.keyboard.type("word/3")
    settle(page)
    assert page.locator("#list [role=option]").count() == 1
    press(page, "Escape", "n")
    assert "word/3" in page.inner_text("#pane-a h2")


def test_filters_choose_prompts(page: "Page", address: str) -> None:
    open_at(page, address, run=0, step=7, tree=0)
    expected = {"all": ["word/1", "word/2", "word/3"], "mixed": ["word/1", "word/3"], "surprise": ["word/1"]}
    expected |= {"unsolved": ["word/1", "word/3"], "failed": ["word/1", "word/3"]}
    for show, tasks in expected.items():
        page.select_option("#show", show)
        settle(page)
        assert page.locator("#list .task").all_inner_texts() == tasks, show
    assert "show=failed" in page.url


def test_two_algorithms_on_the_same_prompt_stand_side_by_side(page: "Page", address: str) -> None:
    open_at(page, address, run=0, step=7, tree=0, node=1)
    page.select_option("#beside", "1")
    page.wait_for_selector("#pane-b[data-drawn-ms]")
    assert "second (grpo), step 5: word/1" in page.inner_text("#pane-b h2")
    press(page, "x", "ArrowRight", "ArrowRight")
    assert (selected(page, "b"), selected(page, "a")) == ("b-n2", "a-n1")
    assert "runs/second 5 1" in page.inner_text("#detail") or "node 2" in page.inner_text("#detail h2")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    settle(page)
    assert selected(page, "b") == "b-n2" and page.inner_text("#detail h2").startswith("node 2")
    press(page, "n")
    assert "kept no tree of this prompt" in page.inner_text("#pane-b h2")


@pytest.mark.parametrize("show", ["rolled", "surprise"])
def test_hostile_text_is_shown_and_never_obeyed(page: "Page", address: str, show: str) -> None:
    for node in (0, 3):
        open_at(page, address, run=2, step=0, tree=0, node=node, show=show)
        assert page.evaluate("window.owned") is None
        assert (
            page.locator(
                "#detail img, #detail script, #detail pre *, #panes img, #list img, #list script"
            ).count()
            == 0
        )
    assert "<script>window.owned=1</script>" in page.inner_text("#detail pre >> nth=0")
    assert "\u202e" not in page.inner_text("body") and "\x1b" not in page.inner_text("body")
    assert HOSTILE_NAME in page.inner_text("#run") and HOSTILE_NAME in page.inner_text("#pane-a h2")
    assert page.evaluate("document.title").startswith(HOSTILE_NAME)
    page.select_option("#beside", "2")
    page.wait_for_selector("#pane-b[data-drawn-ms]")
    assert page.evaluate("window.owned") is None


def test_a_hostile_address_is_only_words(page: "Page", address: str) -> None:
    open_at(
        page,
        address,
        run="0",
        step="0",
        tree="0",
        node="1",
        show="<script>",
        q="<img src=x onerror=owned=1>",
        pane="__proto__",
    )
    assert page.evaluate("window.owned") is None and "No prompt fits" in page.inner_text("#list")


def test_inline_scripts_would_be_blocked_even_if_one_got_in(browser: "Browser", address: str) -> None:
    page = browser.new_page()
    open_at(page, address, run=0, step=0, tree=0)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.owned=1>')")
    page.evaluate(
        "{const s = document.createElement('script'); s.textContent = 'window.owned=1'; document.body.append(s)}"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None
    page.close()


def test_five_thousand_nodes_are_drawn_and_walked(page: "Page", address: str, record_property: Any) -> None:
    cpu = main_thread(page)
    open_at(page, address, run=3, step=0, tree=0)
    times = {"open": cpu()}
    assert 0 < page.locator("#pane-a g.item").count() < 500  # only what lies in the window
    press(page, "0")
    assert page.locator("#pane-a g.item").count() >= NODES
    page.evaluate(FRAME)
    times["show all at once"] = cpu()
    page.evaluate(
        "document.querySelector('#pane-a svg').dispatchEvent(new WheelEvent('wheel', {deltaY: 20, clientX: 600, clientY: 400}))"
    )
    page.evaluate(FRAME)
    times["zoom out"] = cpu()
    press(page, "ArrowRight")
    page.evaluate(FRAME)
    times["move to the next node"] = cpu()
    press(page, "ArrowDown", "f")
    assert selected(page) not in (None, "a-n0") and page.locator(f"#{selected(page)}").count() == 1
    told = ", ".join(f"{what} {seconds:.2f}" for what, seconds in times.items())
    print(f"\n{NODES} nodes, CPU seconds of the page's main thread: {told}")
    record_property("cpu_s", times)
    assert sum(times.values()) < 20


def main_thread(page: "Page") -> Callable[[], float]:
    """Each call: CPU seconds that the page's main thread took since the one before."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    before = 0.0

    def since() -> float:
        nonlocal before
        metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
        now = float(metrics["TaskDuration"])
        before, passed = now, now - before
        return passed

    since()
    return since


def test_new_steps_appear_while_the_run_goes_on(page: "Page", address: str, runs: list[RunFolder]) -> None:
    page.goto(f"{address}#run=4")
    page.wait_for_selector("#list .note")
    assert "No trees were kept so far" in page.inner_text("#list")
    keep(runs[4], 0, small_tree("late/1"))
    page.wait_for_selector("text=late/1", timeout=10_000)
    page.check("#follow")
    keep(runs[4], 1, small_tree("late/2"))
    page.wait_for_selector("#pane-a h2 >> text=late/2", timeout=10_000)
    assert page.input_value("#step") == "1"


def test_a_broken_file_and_a_missing_node_are_said(
    browser: "Browser", address: str, runs: list[RunFolder]
) -> None:
    page = browser.new_page()
    page.goto(f"{address}#run=0&step=0&tree=0&node=99")
    page.wait_for_selector("[role=alert]")
    assert "has nodes 0 to 5" in page.inner_text("#detail")
    page.close()


def test_it_can_be_read_aloud(page: "Page", address: str) -> None:
    open_at(page, address, run=0, step=0, tree=0, node=1)
    tree = page.locator("#pane-a").aria_snapshot()
    assert "tree" in tree and "treeitem" in tree and "node 1, 0.20 predicted, realised 0.50" in tree
    assert page.evaluate(NAMELESS) == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")


@pytest.mark.skipif(
    "TRACE_GYM_PICTURES" not in os.environ,
    reason="set TRACE_GYM_PICTURES=RUN:RUN to make the pictures in docs/",
)
def test_pictures_for_the_documentation(browser: "Browser") -> None:
    """Of the first run's most surprising prompt, of it beside the second run's, and of the recorded suite's report."""
    folders = [Path(text) for text in os.environ["TRACE_GYM_PICTURES"].split(":")]
    with _serving(folders) as address:
        page = browser.new_page(viewport={"width": 1360, "height": 800})
        open_at(page, address, show="surprise")
        press(page, "n", "p", "s", "0")
        keep_picture(page.screenshot(), PICTURES / "viewer.png")
        page.close()
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        open_at(page, address, show="mixed", beside=1)
        page.wait_for_selector("#pane-b[data-drawn-ms]")
        press(page, "0")
        keep_picture(page.screenshot(), PICTURES / "viewer-beside.png")
        page.close()
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(REPORT.as_uri())
        keep_picture(page.screenshot(), PICTURES / "report.png")
        page.close()
