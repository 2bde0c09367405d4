"""Settings that every test shares: no network, no display, and no property test that fails for slowness."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("trace_gym", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("trace_gym")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real task files beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real task files at {folder}")
    return folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has barely learned the format: enough for the machinery."""
    from trace_gym.plugins import make_env  # heavy, and most tests need no policy
    from trace_gym.warmup import warmup

    out = tmp_path_factory.mktemp("warm") / "policy"
    env = make_env("trace_gym/Math-v0", {"difficulty": "1-2"})
    warmup(out, env=env, steps=120, demonstrations=400, d_model=48, layers=2, batch=16)
    return out
