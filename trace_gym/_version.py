"""The version, declared here only: the build and the public `__version__` read it; CHANGELOG.md opens with it."""

__version__ = "0.1.0"
