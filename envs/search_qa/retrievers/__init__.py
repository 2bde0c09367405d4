"""Retrievers beyond the built-in one: an HTTP service, live Wikipedia, a tantivy index."""
