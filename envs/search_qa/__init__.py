"""`trace_gym/SearchQA-v0`: questions of several hops, answered by searching."""
