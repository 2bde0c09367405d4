"""Stateful function calling over several user turns: one environment, several worlds."""
