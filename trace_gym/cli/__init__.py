"""The command line. Commands are thin: they turn words into values, call one function and print what it returns.

Invariant: whatever a user got wrong is `error: …` on stderr, a line each, and exit status 1; `--debug` shows the
traceback instead. Ctrl-C is status 130. Heavy packages are imported inside the commands that need them, so `--help` is
quick.
"""

from trace_gym.cli import (  # noqa: F401  (registers the commands)
    bench,
    data,
    demo,
    doctor,
    fork,
    learning,
    listing,
    models,
    play,
    serve,
    trees,
    view,
)
from trace_gym.cli.app import app, main

__all__ = ["app", "main"]
