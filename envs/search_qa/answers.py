"""How answers are scored: HotpotQA's evaluation (Yang et al. 2018), which took over SQuAD's.

Before anything is compared, an answer is put in lower case and loses its punctuation, its articles and its extra white
space. Exact match compares what is left; F1 is the harmonic mean of the precision and the recall of its words, and is 0
where one side is yes, no or noanswer and the other is not the same. The best of several gold answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

__all__ = ["exact_match", "f1", "normalised"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = frozenset({"yes", "no", "noanswer"})


def normalised(answer: str) -> str:
    """`answer` in lower case, without punctuation (ASCII's), articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> bool:
    """Whether `answer` equals one of `golds` after normalisation."""
    return normalised(answer) in {normalised(gold) for gold in golds}


def f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 of the words of `answer` against those of one gold answer, from 0 to 1."""
    return max((_f1(normalised(answer), normalised(gold)) for gold in golds), default=0.0)


def _f1(answer: str, gold: str) -> float:
    if answer != gold and (answer in _CLOSED or gold in _CLOSED):
        return 0.0
    ours, theirs = Counter(answer.split()), Counter(gold.split())
    common = sum((ours & theirs).values())
    if not common:
        return 0.0
    precision, recall = common / sum(ours.values()), common / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)
