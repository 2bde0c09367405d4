"""`serve-retriever`: one index in memory for any number of runs."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from trace_gym.cli.app import app
from trace_gym.observer import printable

__all__ = ["serve_command"]


@app.command("serve-retriever")
def serve_command(
    corpus: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Documents, a JSON object a line; default: the built-in ones."),
    ] = None,
    retriever: Annotated[str, typer.Option(help="bm25, or tantivy for large corpora.")] = "bm25",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    verbose: Annotated[bool, typer.Option("--verbose", help="A line for each request.")] = False,
) -> None:
    """Serve a retriever at http://127.0.0.1:PORT/retrieve, in Search-R1's wire format, until Ctrl-C.

    \b
    Example:  trace-gym serve-retriever --corpus wiki.jsonl --retriever tantivy
              trace-gym play trace_gym/SearchQA-v0 --option retriever=http://127.0.0.1:8000/retrieve
    """
    from trace_gym.envs.search_qa.retriever import make_retriever
    from trace_gym.envs.search_qa.retrievers.corpus import builtin_documents, read_corpus
    from trace_gym.envs.search_qa.serve import RetrieverServer
    from trace_gym.errors import ConfigError

    if retriever not in ("bm25", "tantivy"):
        raise ConfigError(f"--retriever is bm25 or tantivy, not {retriever!r}")
    documents = builtin_documents() if corpus is None else read_corpus(corpus)
    note = (lambda line: typer.echo(printable(line), err=True)) if verbose else (lambda line: None)
    with RetrieverServer(make_retriever(retriever, documents), port, log=note) as server:
        for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT may have been inherited as ignored
            signal.signal(number, _interrupt)
        typer.echo(f"serving {len(documents):,} documents by {retriever} at {server.url}; Ctrl-C ends it")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            typer.echo("stopped")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
