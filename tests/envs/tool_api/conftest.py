"""BFCL's data, where it can be had."""

from pathlib import Path

import pytest

from trace_gym import data
from trace_gym.errors import ConfigError


@pytest.fixture(scope="session")
def bfcl() -> Path:
    """The folder of BFCL's data; obtained where it is missing, and tests that need it skip where that fails."""
    try:
        return data.get("bfcl", deadline_s=60)
    except ConfigError as error:
        pytest.skip(f"no BFCL: {error}")
