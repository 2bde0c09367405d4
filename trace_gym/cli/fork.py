"""`fork`, and `eval --from`: back into a stored node of a run's tree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trace_gym.cli.app import INTERRUPTED, DebugOption, app
from trace_gym.cli.play import play_until_quit, reader, show
from trace_gym.cli.trust import TrustOption, refuse_untrusted
from trace_gym.config import TrainConfig
from trace_gym.observer import printable
from trace_gym.play import Game, Said
from trace_gym.plugins import make_env

if TYPE_CHECKING:
    from trace_gym.view.stored import StoredNode

__all__ = ["CONTINUATIONS", "evaluate_from", "fork_command"]

CONTINUATIONS = 32


@app.command("fork")
def fork_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    step: Annotated[int, typer.Argument(metavar="STEP", min=0)],
    tree: Annotated[str, typer.Argument(metavar="TREE", help="Its number in the step, or its task's id.")],
    node: Annotated[int, typer.Argument(metavar="NODE", min=0)],
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fresh environment noise; default: the stored noise goes on.")
    ] = None,
    show_: Annotated[bool, typer.Option("--show", help="Print what led to the node, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON, and stop.")] = False,
    trust: TrustOption = False,
    debug: DebugOption = False,
) -> None:
    """Go back into a node of a recorded tree and play on from there, as in `play`. `:back` leads up its path.

    \b
    Examples:  trace-gym fork runs/train 12 3 5
               trace-gym fork runs/train 12 word/train/2/0 5 --show
               trace-gym eval --from runs/train:12:3:5 -k 64     (let the policy play on)
    """
    from trace_gym.view.stored import find_node

    stored = find_node(run, step, tree, node)
    if as_json:
        typer.echo(json.dumps(_facts(stored), indent=2))
        return
    if show_:
        for said in _path(stored):
            show(said)
        return
    config = stored.run.config()
    refuse_untrusted(config, config, trust=trust)
    game = Game(make_env(config.env.id, config.env.options), seed=seed)
    path = [stored.tree[index] for index in stored.tree.path(node)]
    try:
        for said in game.reopen([(step.snapshot, step.reward) for step in path]):
            show(said)
        for said in _path(stored):
            show(said)
        show(Said("note", f"{game.turns_left()}; type an action, or :help"))
        play_until_quit(game, reader(), show, debug=debug)
    except KeyboardInterrupt:
        typer.echo()
        raise typer.Exit(INTERRUPTED) from None


def evaluate_from(
    address: str,
    *,
    policy: str | None,
    settings: Sequence[str],
    continuations: int,
    seed: int | None,
    trust: bool,
) -> None:
    """`eval --from`: print how often the policy succeeds from the node, beside what was predicted there."""
    from trace_gym.actor import build_actor
    from trace_gym.revisit import success_from
    from trace_gym.view.stored import find_node, split_address

    stored = find_node(*split_address(address))
    config = _config_of(stored, policy, settings, seed)
    refuse_untrusted(stored.run.config(), config, trust=trust)
    actor = build_actor(config)
    try:
        rate = success_from(stored, actor, continuations=continuations, seed=config.seed)
    finally:
        actor.engine.close()
    low, high = rate.interval
    typer.echo(printable(f"{stored.run.path}, {stored}"))
    typer.echo(
        printable(
            f"{config.policy.path}: success {rate.success:.3f} (95 % interval {low:.3f} to {high:.3f}),"
            f" {rate.continuations} continuations, {rate.unscored} of them unscored"
        )
    )
    typer.echo("when the tree grew: " + "; ".join(_then(stored)))


def _config_of(
    stored: StoredNode, policy: str | None, settings: Sequence[str], seed: int | None
) -> TrainConfig:
    """The run's settings, with the policy that it made or the one that was named."""
    from trace_gym.cli.learning import policy_of
    from trace_gym.config import load_config
    from trace_gym.settings import setting

    _, chosen = policy_of(str(stored.run.path) if policy is None else policy)
    seeds = [] if seed is None else [setting("seed", seed)]
    return load_config(stored.run.path / "config.yaml", [*chosen, *seeds, *settings])


# ---- a stored node in words -----------------------------------------------------------------------------------------


def _then(stored: StoredNode) -> Iterator[str]:
    """What was thought of the node, and what came of it, when the tree grew."""
    facts = stored.facts
    if facts["predicted"] is not None:
        yield f"predicted {facts['predicted']:.3f}"
    if facts["realised"] is not None:
        yield f"realised {facts['realised']:.3f} over {facts['draws']} draw{'s' * (facts['draws'] != 1)}"
    else:
        yield "nothing was scored below it"


def _path(stored: StoredNode) -> Iterator[Said]:
    yield Said("note", f"{stored}; {'; '.join(_then(stored))}")
    for index in stored.tree.path(stored.node):
        node = stored.tree[index]
        if index:
            yield Said("agent", node.action)
        yield Said("answer" if index else "prompt", node.observation)


def _facts(stored: StoredNode) -> dict[str, object]:
    snapshot = stored.tree[stored.node].snapshot
    assert snapshot is not None
    place = {"run": str(stored.run.path), "step": stored.step, "tree": stored.number}
    turns = {"turn_limit": snapshot.turn_limit, "turns_left": snapshot.turn_limit - snapshot.turn}
    return {**place, "env": snapshot.env_id, **turns, **stored.facts}
