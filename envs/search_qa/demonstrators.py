"""Two scripted agents: an expert that always succeeds, and a novice that is hasty in its own fixed way.

Both are functions of the situation alone (question, calls made, hops found, turns left), so they can take over from
any agent at any state. The expert makes the search of the first hop that is still missing; if that did not show what
it needs, it opens the passage; what then still is missing cannot be had here, and it goes on. The novice's errors are
mostly systematic: it stops a hop early with what it has read so far, and takes the tempting one of two answers, such as
the wrong direction of a comparison. An agent trained on its demonstrations has decisions to improve, not only noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.search_qa.task import Question, ToolName, Use

__all__ = ["KEPT_CHARS", "expert_action", "novice_action"]

KEPT_CHARS = 400  # of a query or title, in the state


def expert_action(question: Question, uses: Sequence[Use], found: Sequence[int], turns_left: int) -> str:
    """The call that the first missing hop needs, or the answer when there is none or one turn is left."""
    step = _next_step(question, uses, found)
    if step is None or turns_left <= 1:
        return format_answer(question.answers[0])
    return _call(step)


def novice_action(
    question: Question,
    uses: Sequence[Use],
    found: Sequence[int],
    turns_left: int,
    rng: np.random.Generator,
    *,
    slip: float,
    noise: float,
) -> str:
    """As the expert, but: before each later hop it stops with probability `slip` and answers from what it has read; at
    the end it takes a tempting answer with probability `slip`; and with probability `noise` it makes a random mistake.
    """
    step = _next_step(question, uses, found)
    if step is None or turns_left <= 1:
        wrong = question.tempting and rng.random() < slip
        return _spaced_answer(_pick(question.tempting, rng) if wrong else question.answers[0])
    read = [hop.value for i, hop in enumerate(question.hops) if i in found and hop.value]
    if rng.random() < noise:
        return _mistake(question, step, read, rng)
    if step.index > 0 and step.tool == "search" and rng.random() < slip:
        return _hasty_answer(question, read, rng)
    if step.tool == "open":
        return format_call("open", {"title": f" {step.text}"})
    return _call(step)


@dataclass(frozen=True, slots=True)
class _Step:
    """The call that the hop at `index` needs next."""

    index: int
    tool: ToolName
    text: str


def _next_step(question: Question, uses: Sequence[Use], found: Sequence[int]) -> _Step | None:
    for index, hop in enumerate(question.hops):
        if index in found:
            continue
        if Use("search", hop.query[:KEPT_CHARS]) not in uses:
            return _Step(index, "search", hop.query)
        if Use("open", hop.title[:KEPT_CHARS]) not in uses:
            return _Step(index, "open", hop.title)
    return None


def _call(step: _Step) -> str:
    argument = "query" if step.tool == "search" else "title"
    return format_call(step.tool, {argument: step.text})


def _spaced_answer(answer: str) -> str:
    """The answer after a space, as titles and answers of the novice are throughout: to a tokenizer of whole words, such
    as the tiny policy's, it is then the same word that stood in the passage."""
    return format_answer(f" {answer}")


def _hasty_answer(question: Question, read: Sequence[str], rng: np.random.Generator) -> str:
    """The value read last, or in a comparison one of the two at random."""
    if question.kind == "bridge" and read:
        return _spaced_answer(read[-1])
    return _spaced_answer(_pick([question.answers[0], *question.tempting], rng))


def _mistake(question: Question, step: _Step, read: Sequence[str], rng: np.random.Generator) -> str:
    """Searching for the whole question, searching for another hop, or opening what was read last as a title."""
    kind = int(rng.integers(3))
    if kind == 0:
        return format_call("search", {"query": question.text[:KEPT_CHARS]})
    if kind == 1 and read:
        return format_call("open", {"title": f" {read[-1]}"})
    hop = question.hops[int(rng.integers(len(question.hops)))]
    return format_call("search", {"query": f" {hop.title}"})


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]
