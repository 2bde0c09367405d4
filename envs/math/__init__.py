"""`trace_gym/Math-v0`: mathematics problems in several turns, with a calculator and an equation solver."""
