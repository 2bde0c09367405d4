"""`python -m trace_gym.cli` is `trace-gym`."""

from trace_gym.cli import main

main()
