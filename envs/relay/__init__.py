"""`trace_gym/Relay-v0`: an exact testbed."""
