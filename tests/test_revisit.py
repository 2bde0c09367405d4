"""Back into stored nodes: what is found there, that going on is exact, and how often a policy succeeds from there."""

import dataclasses
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tests.support.viewed import keep, run_folder, small_tree
from trace_gym.actor import Actor, build_actor
from trace_gym.cli import app
from trace_gym.cli.trust import refuse_untrusted
from trace_gym.config import dump_config, load_config
from trace_gym.errors import ConfigError, TraceGymError
from trace_gym.evaluate import wilson
from trace_gym.observer import Silent
from trace_gym.render import PlainRenderer
from trace_gym.revisit import Rate, success_from
from trace_gym.runs import RunFolder
from trace_gym.train import train
from trace_gym.tree import Tree
from trace_gym.view.stored import find_node, split_address

SETTINGS = [
    "name=relay",
    "policy.path=tabular",
    "env.id=trace_gym/Relay-v0",
    "env.options={kinds: 6, slip: 0.2, slack: 4}",
    "algorithm.name=trace",
    "algorithm.predictor=beta",
    "algorithm.pool=4",
    "algorithm.rollouts=16",
    "algorithm.prefix_stage=active",
    "algorithm.warmup_steps=1",
    "budget.steps=2",
    "eval.tasks=2",
    "log.trees_every_steps=1",
]
STEP = 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two steps of TRACE with continuations on an environment whose success probabilities are known."""
    out = tmp_path_factory.mktemp("runs")
    return train(load_config(None, [*SETTINGS, f"out={out}"]), Silent())


@pytest.fixture(scope="module")
def actor(run: RunFolder) -> Actor:
    return build_actor(load_config(run.path / "config.yaml", [f"policy.path={run.policy_folder}"]))


@pytest.fixture(scope="module")
def tree(run: RunFolder) -> tuple[str, Tree]:
    """The first tree with continuations: its number, and itself."""
    trees = run.load_trees(STEP)
    number = next(i for i, t in enumerate(trees) if any(n.origin == "continuation" for n in t.nodes))
    return str(number), trees[number]


def fork(*words: str | int | Path, typed: str = "") -> Result:
    return CliRunner().invoke(app, ["fork", *map(str, words)], input=typed)


def evaluate(*words: str | int | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def refused(result: Result) -> str:
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.startswith("error: "), (
        result.output
    )
    return result.stderr


def digests(run: RunFolder) -> dict[str, str]:
    files = (path for path in run.path.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- k continuations -------------------------------------------------------------------------------------------------


def test_the_rate_is_the_policys_true_success_from_there(
    run: RunFolder, actor: Actor, tree: tuple[str, Tree]
) -> None:
    number, grown = tree
    before = digests(run)
    for node in (0, grown.anchors()[0]):
        stored = find_node(run.path, STEP, number, node)
        truth = actor.model.oracle(actor.settings.temperature)([grown[node].snapshot])[0]
        rate = success_from(stored, actor, continuations=400)
        assert rate.unscored == 0
        assert abs(rate.success - truth) < 4 * math.sqrt(max(truth * (1 - truth), 0.01) / 400)
    assert digests(run) == before


def test_the_same_seed_draws_the_same_and_another_does_not(
    run: RunFolder, actor: Actor, tree: tuple[str, Tree]
) -> None:
    stored = find_node(run.path, STEP, tree[0], 0)
    rates = [success_from(stored, actor, continuations=60, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert rates[0] == rates[1] and len(set(rates)) > 1
    assert len(stored.tree) == len(tree[1])  # the stored tree does not grow


def test_a_policy_with_another_tokenizer_is_refused(
    run: RunFolder, actor: Actor, tree: tuple[str, Tree]
) -> None:
    stored = find_node(run.path, STEP, tree[0], 0)
    stranger = dataclasses.replace(actor, renderer=PlainRenderer())
    with pytest.raises(ConfigError, match="another tokenizer or chat template"):
        success_from(stored, stranger, continuations=1)


def test_a_rate_counts_what_was_scored() -> None:
    assert Rate(32, 2, 15).success == 0.5 and Rate(32, 2, 15).interval == wilson(0.5, 30)
    assert math.isnan(Rate(3, 3, 0).success) and all(map(math.isnan, Rate(3, 3, 0).interval))


def test_eval_from_prints_rate_interval_and_what_was_predicted(
    run: RunFolder, tree: tuple[str, Tree]
) -> None:
    result = evaluate("--from", f"{run.path}:{STEP}:{tree[0]}:0", "-k", "40", "--seed", "5")
    assert result.exit_code == 0, result.output
    where, rate, then = result.stdout.splitlines()
    assert where == f"{run.path}, step {STEP}, tree {tree[0]} ({tree[1].task_id}), node 0, turn 0"
    success, low, high = (
        float(word) for word in rate.replace(")", " ").replace(",", " ").split() if word[:2] in ("0.", "1.")
    )
    assert (low, high) == pytest.approx(wilson(success, 40), abs=6e-4)
    assert "40 continuations, 0 of them unscored" in rate and str(run.policy_folder) in rate
    assert then.startswith("when the tree grew: predicted 0.") and "over 8 draws" in then


def test_eval_from_takes_another_policy(run: RunFolder, tree: tuple[str, Tree]) -> None:
    result = evaluate("tabular", "--from", f"{run.path}:{STEP}:{tree[0]}:0", "-k", "8")
    assert result.exit_code == 0 and "tabular: success" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "{run}:1:0"], "write RUN:STEP:TREE:NODE"),
        (["--from", "{run}:x:0:0"], "write RUN:STEP:TREE:NODE"),
        (["--from", "{run}:7:0:0"], "no trees of step 7 were kept; it has steps 0 to 1"),
        (["--from", "{run}:1:9:0"], "step 1 has 4 trees"),
        (["--from", "{run}:1:0:9999"], "not 9999"),
        (["--from", "{run}:1:nothing:0"], "no tree of task 'nothing'"),
        (["--from", "{run}/none:1:0:0"], "no run folder"),
        (["--from", "{run}:1:0:0", "--tasks", "3"], "do not apply"),
        (["--from", "{run}:1:0:0", "--greedy"], "do not apply"),
        (["{run}", "-k", "3"], "-k goes with --from"),
        ([], "name the policy's folder"),
    ],
)
def test_mistakes_are_one_line(run: RunFolder, words: list[str], message: str) -> None:
    text = refused(evaluate(*(word.format(run=run.path) for word in words)))
    assert message in text and text.count("\n") == 1


def test_a_run_without_a_policy_so_far_asks_for_one(
    run: RunFolder, tree: tuple[str, Tree], tmp_path: Path
) -> None:
    young = RunFolder(tmp_path / "young:run")
    (young.path / "trees").mkdir(parents=True)
    for name in ("config.yaml", f"trees/step-00000{STEP}.parquet"):
        (young.path / name).write_bytes((run.path / name).read_bytes())
    assert "holds no policy yet" in refused(evaluate("--from", f"{young.path}:{STEP}:{tree[0]}:0"))


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_what_was_played_leads_where_it_led(run: RunFolder, tree: tuple[str, Tree]) -> None:
    """The stored noise goes on: the recorded action from a restored node gives the recorded answer."""
    number, grown = tree
    child = next(i for i, n in enumerate(grown.nodes) if n.parent > 0 and n.draw == 0)
    result = fork(run.path, STEP, number, grown[child].parent, typed=f"{grown[child].action}\n:state\n")
    assert result.exit_code == 0, result.output
    said = result.stdout.split("type an action, or :help")[1]
    assert grown[child].observation in said
    if grown[child].status == "running":
        assert f"state key {grown[child].state_key}" in said


def test_the_path_is_told_and_back_leads_up_it(run: RunFolder, tree: tuple[str, Tree]) -> None:
    number, grown = tree
    node = max(grown.anchors(), key=lambda i: len(grown.path(i)))
    turns = len(grown.path(node)) - 1
    result = fork(run.path, STEP, number, node, typed=f":state\n:back {turns}\n:state\n:back\n")
    assert f"state key {grown[node].state_key}" in result.stdout and f"turn {turns} of" in result.stdout
    assert f"state key {grown[0].state_key}" in result.stdout and "turn 0 of" in result.stdout
    assert [f"agent  | {grown[i].action}" in result.stdout for i in grown.path(node)[1:]] == [True] * turns
    assert "there is no fork" in result.stdout


def test_another_seed_is_other_noise(run: RunFolder, tree: tuple[str, Tree]) -> None:
    """One in five right words slips, by the environment's noise."""

    def answers(*seed: str) -> str:
        return fork(run.path, STEP, tree[0], 0, *seed, typed=":expert\n" * 4).stdout

    assert answers() == answers()
    assert len({answers("--seed", str(seed)) for seed in range(6)}) > 1


def test_a_node_can_be_read_without_playing(run: RunFolder, tree: tuple[str, Tree]) -> None:
    number, grown = tree
    node = grown.anchors()[0]
    shown = fork(run.path, STEP, grown.task_id, node, "--show")
    assert shown.exit_code == 0 and f"node {node}, turn 1; predicted 0." in shown.stdout
    assert f"answer | {grown[node].observation}" in shown.stdout and ">" not in shown.stdout
    facts = json.loads(fork(run.path, STEP, number, node, "--json").stdout)
    assert (facts["tree"], facts["node"], facts["task"], facts["env"]) == (
        int(number),
        node,
        grown.task_id,
        "trace_gym/Relay-v0",
    )
    assert facts["turns_left"] == facts["turn_limit"] - 1 and facts["state_key"] == grown[node].state_key
    assert [turn["node"] for turn in facts["path"]] == [0, node]


def test_an_end_and_an_irreversible_turn_are_told_what_to_do_instead(
    run: RunFolder, tree: tuple[str, Tree], tmp_path: Path
) -> None:
    number, grown = tree
    leaf = grown.leaves()[0]
    text = refused(fork(run.path, STEP, number, leaf))
    assert "is the end of an episode" in text and f"its parent {grown[leaf].parent}" in text
    bare = run_folder(tmp_path)
    keep(bare, 0, small_tree())  # trees without snapshots
    text = refused(fork(bare.path, 0, 0, 1))
    assert "holds no snapshot" in text and "its parent 0" in text
    assert "nothing can be entered again here" in refused(fork(bare.path, 0, 0, 0))


def test_hostile_text_cannot_steer_the_terminal(
    run: RunFolder, tree: tuple[str, Tree], tmp_path: Path
) -> None:
    rows = pq.read_table(run.trees_path(STEP)).to_pylist()
    number, grown = tree
    node = grown.anchors()[0]
    for row in rows:
        row["action"] = row["observation"] = "\x1b[2J\nnote   | owned"
    copy = RunFolder(tmp_path)
    (tmp_path / "trees").mkdir()
    (tmp_path / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    pq.write_table(
        type(pq.read_table(run.trees_path(STEP))).from_pylist(
            rows, schema=pq.read_schema(run.trees_path(STEP))
        ),
        copy.trees_path(STEP),
    )
    shown = fork(tmp_path, STEP, number, node, "--show").stdout
    assert "\x1b" not in shown and not any(line.startswith("note   | owned") for line in shown.splitlines())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env.id": "{folder}.boot:trace_gym/Relay-v0"}, "import the module"),
        (
            {"env.options": "{{kinds: 6, slip: 0.2, slack: 4, source: 'openapi:x.yaml'}}"},
            "env.options.source",
        ),
        ({"engine": "{{kind: openai, url: 'http://x.test/v1', key_env: HOME}}"}, "send it the variable HOME"),
    ],
)
def test_a_run_of_somebody_elses_runs_no_code_and_asks_nobody(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    folder = tmp_path / "from_elsewhere"
    shutil.copytree(run.path, folder)
    changes = [f"{key}={value.format(folder=folder.name)}" for key, value in settings.items()]
    (folder / "config.yaml").write_text(dump_config(load_config(run.path / "config.yaml", changes)))
    (folder / "boot.py").write_text("import pathlib\npathlib.Path('owned').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    address = f"{folder.name}:{STEP}:0:0"
    for words in (["fork", folder.name, STEP, 0, 0], ["eval", "--from", address], ["eval", folder.name]):
        text = refused(CliRunner().invoke(app, list(map(str, words))))
        assert said in text and "--trust" in text and not (tmp_path / "owned").exists()
    if "env.id" in settings:  # it is what it names, once its owner says so
        trusted = CliRunner().invoke(app, ["fork", folder.name, str(STEP), "0", "0", "--trust"], input="")
        assert trusted.exit_code == 0 and (tmp_path / "owned").exists()
    for name in (f"{folder.name}.boot", folder.name):
        sys.modules.pop(name, None)


def test_what_the_caller_names_himself_needs_no_trust(run: RunFolder) -> None:
    own = run.config()
    used = load_config(run.path / "config.yaml", ["engine={kind: openai, url: 'http://x.test/v1'}"])
    refuse_untrusted(own, used, trust=False)
    with pytest.raises(ConfigError, match="--trust"):
        refuse_untrusted(used, used, trust=False)


@pytest.mark.parametrize(
    "text", ["", "a:b", "a:1:2", ":1:2:3", "a:1::3", "a:-1:2:3", "a:1:2:³", "a:1:2:99999999999"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(TraceGymError, match="write RUN:STEP:TREE:NODE"):
        split_address(text)


def test_an_address_may_hold_colons_in_the_runs_path() -> None:
    assert split_address("C:/runs:1/x:12:3:5") == ("C:/runs:1/x", 12, "3", 5)
    assert split_address("r:0:word/train/2:7") == ("r", 0, "word/train/2", 7)


# ---- what training keeps ---------------------------------------------------------------------------------------------


def test_training_keeps_predictions_and_reasons(run: RunFolder) -> None:
    warm, step = (pq.read_table(run.trees_path(i)).to_pylist() for i in (0, STEP))
    roots = [row for row in step if row["node"] == 0]
    assert all(0 < row["predicted"] < 1 for row in roots)  # skipped prompts too
    assert {row["why"].split(":")[0] for row in roots} == {"by prediction"}
    assert any("skipped" in row["why"] for row in roots)
    assert all(
        row["why"]
        == f"at random, to warm up: {'8 rollouts' if _opened(warm, row) else 'skipped'}"
        + (f", success predicted {row['predicted']:.2f}" if row["predicted"] is not None else "")
        for row in warm
        if row["node"] == 0
    )
    continued = {
        (row["tree"], row["parent"]) for row in step if row["origin"] == "continuation" and row["draw"] > 0
    }
    told = {(row["tree"], row["node"]) for row in step if row["node"] > 0 and row["why"]}
    assert continued == told
    leaves = [row for row in step if row["status"] != "running"]
    assert all(row["predicted"] is None for row in leaves)


def _opened(rows: list[dict[str, object]], root: dict[str, object]) -> bool:
    return sum(row["tree"] == root["tree"] for row in rows) > 1
