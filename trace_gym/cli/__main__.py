"""`python -m trace_gym.cli` is `trace-gym` with the present folder on the import path."""

from trace_gym.cli import main

main()
