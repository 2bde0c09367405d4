"""A policy small enough to learn on a laptop: a Llama of about a million parameters with a tokenizer of its own.

The tokenizer turns the words and fixed strings of its environment (`<tool_call>{"name":"calculator",…`) into one
token each, numbers into digits and all else into short merges or bytes: a turn costs few tokens, and yet any text can
be read. Its chat template writes one token a role and leaves instructions out: the policy is taught, not told.

Invariant: what `save` leaves behind is a plain Hugging Face folder, whole or absent.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from trace_gym.chat import BARE
from trace_gym.errors import ConfigError, RunError

__all__ = [
    "MAX_POSITIONS",
    "check_place",
    "load_policy_folder",
    "make_model",
    "make_tokenizer",
    "quiet",
    "save",
    "writing",
]

MAX_POSITIONS = 1024
HUB_TIMEOUT_S = 5.0
END, PAD, USER, TOOL, AGENT = SPECIAL = ("<|end|>", "<|pad|>", "<|user|>", "<|tool|>", "<|agent|>")
TEMPLATE = (
    BARE
    + "{%- for m in messages -%}"
    + "{%- if m.role in ('user', 'tool') -%}{{ '<|' + m.role + '|>' + m.content }}"
    + "{%- elif m.role == 'assistant' -%}{{ '<|agent|>' + m.content + '<|end|>' }}{%- endif -%}"
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|agent|>' }}{%- endif -%}"
)
# A digit; a run of tags and JSON up to where something variable begins; a word; any other mark.
PIECES = r"""\d|[<"][^\s\d(\-]{0,98}[>"]| ?\p{L}+|[^\s\p{L}\d]"""
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 characters that stand for the bytes
_SPLIT = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def make_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most `vocab_size` tokens for texts like these; equal texts give an equal one.

    Of the tokens left beside bytes and turn markers, up to three quarters are the whole pieces (words, fixed
    strings) that save most; the others are merges, which spell words that were not seen.
    Raises `ConfigError` when `vocab_size` has no room for the bytes.
    """
    free = vocab_size - len(SPECIAL) - len(BYTES)
    if free < 0:
        raise ConfigError(
            f"vocab_size is {vocab_size}; bytes and turn markers alone take {vocab_size - free}"
        )
    pieces = Counter(piece for text in texts for piece, _ in _SPLIT.pre_tokenize_str(text))
    vocab = {token: i for i, token in enumerate([*SPECIAL, *BYTES, *_whole(pieces)[: free - free // 4]])}
    merges = []
    for left, right in _merges(pieces, free):
        if len(vocab) == vocab_size and left + right not in vocab:
            break
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    # With `ignore_merges` a piece that is a token stands for itself, whatever merges would make of it.
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([_SPLIT, _BYTE_LEVEL])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _whole(pieces: Counter[str]) -> list[str]:
    """Pieces of more than one byte that occur at least twice, as bytes, those first that save most tokens."""
    spelled = {
        _BYTE_LEVEL.pre_tokenize_str(piece)[0][0]: count for piece, count in pieces.items() if count > 1
    }
    long = (piece for piece in spelled if len(piece) > 1)
    return sorted(long, key=lambda piece: (-spelled[piece] * (len(piece) - 1), piece))


def _merges(pieces: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The first `count` merges of byte pairs, learned from distinct words: their spelling counts, not their number."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _BYTE_LEVEL
    trainer = trainers.BpeTrainer(vocab_size=len(BYTES) + count, initial_alphabet=BYTES, show_progress=False)
    backend.train_from_iterator(sorted(piece for piece in pieces if piece[-1].isalpha()), trainer)
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def make_model(
    tokenizer: PreTrainedTokenizerBase, *, d: int = 128, layers: int = 4, heads: int = 4, seed: int
) -> LlamaForCausalLM:
    """A Llama in fp32 with random weights that depend on `seed` alone; torch's own generator is left as it was.

    `d` is the width, a multiple of 2 * `heads`; width 128 and 4 layers make 0.9 M parameters. Raises `ConfigError`.
    """
    if min(d, layers, heads) < 1 or d % (2 * heads):
        raise ConfigError(
            f"a model of width {d}, {layers} layers and {heads} heads: width must be a multiple of {2 * heads}"
        )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d,
        intermediate_size=3 * d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config).float()
    return model


def save(folder: Path | str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write model and tokenizer to `folder` as a whole, replacing the policy that is there.

    Raises `ConfigError` when `folder` holds anything that is not a policy, `RunError` when the disk refuses.
    """
    folder = Path(folder).absolute()
    check_place(folder)
    with writing(folder):
        _save_beside(folder, model, tokenizer)


def check_place(folder: Path | str) -> None:
    """Raise what `save` would, as far as it can be known: worth asking before minutes of training."""
    folder = Path(folder).absolute()
    if folder.exists() and not _replaceable(folder):
        raise ConfigError(f"{folder} exists and is no policy folder; name another or remove it")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """What the disk, or a package that writes to it, says against writing `place` becomes `RunError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(f"cannot write {place}: {reason}; what was written before is intact") from error


def _save_beside(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    mark = secrets.token_hex(4)
    fresh, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("new", "old"))
    try:
        with quiet():
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """Whether `folder` is empty, or a flat folder with a model's configuration."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    inside = list(folder.iterdir())
    return not inside or ((folder / "config.json").is_file() and all(path.is_file() for path in inside))


def load_policy_folder(
    path: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, or of a name on the Hugging Face hub (`owner/name`); no code of theirs is run.

    A hub that does not answer at once is done without: what it gave before is in its cache. Raises `ConfigError` when
    folder, tokenizer or weights are missing, broken or do not fit together.
    """
    folder = Path(path).expanduser()
    label = str(path)
    make = f"make one with `trace-gym warmup --out {path}`"
    if folder.exists():
        _check_folder(folder)
        return _load_both(str(folder), label, dtype, device)
    if not _is_hub_name(label):
        raise ConfigError(f"there is no policy folder {path}; {make}")
    label += " (no folder here, so a name on the hub)"
    refusal = _refusal_of_hub(str(path))
    try:
        return _load_both(str(path), label, dtype, device, local_files_only=bool(refusal))
    except ConfigError as error:
        text = f"{label}: {refusal}, and no copy of it is cached" if refusal else str(error)
        raise ConfigError(f"{text}; if a folder was meant, {make}") from error


def _is_hub_name(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None and not text.startswith("runs/")


def _refusal_of_hub(name: str) -> str:
    """Why the hub has no such model for us; "" if it has. Asked once: the loaders would try for a minute when offline."""
    try:
        with quiet():
            HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # no network, no such model, no permission, offline by choice
        return f"the hub does not give it ({' '.join(str(error).split())[:200] or type(error).__name__})"
    return ""


def _load_both(
    source: str, label: str, dtype: torch.dtype, device: torch.device | str, **where: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = _load(AutoTokenizer, source, f"{label}: the tokenizer", **where)
    # A tensor that is missing or of the wrong shape would be drawn at random, with a warning only: ask for the report.
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = _load(AutoModelForCausalLM, source, f"{label}: the model", **options, **where)
    wrong = len(report["missing_keys"]) + len(report["mismatched_keys"])
    if wrong:
        raise ConfigError(f"{label}: {wrong} tensors are missing or not of the shape that config.json tells")
    if len(tokenizer) > model.config.vocab_size:
        sizes = f"{len(tokenizer)} tokens and a model of {model.config.vocab_size}"
        raise ConfigError(f"{label}: a tokenizer of {sizes} do not belong together")
    return model.to(device), tokenizer


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name the folder that a policy was saved in")
    needs = {
        "config.json": ("config.json",),
        "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
        "weights": ("*.safetensors", "*.bin"),
    }
    for what, patterns in needs.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            files = "" if patterns == (what,) else f" ({' or '.join(patterns)})"
            raise ConfigError(f"{folder} has no {what}{files}; is it a policy folder?")


def _load(kind: Any, source: str, what: str, **options: Any) -> Any:
    try:
        with quiet():
            return kind.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # transformers, the hub's client and safetensors each raise their own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{what} could not be loaded: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers or the hub: what goes wrong is raised, in one line."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
