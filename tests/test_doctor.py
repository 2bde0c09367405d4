"""`trace-gym doctor`: what it says about a sound installation and about broken ones, and that it always ends."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import gymnasium
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner, Result

import trace_gym
from trace_gym.cli import app, doctor
from trace_gym.cli.doctor import Finding, Probe, examine


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words])


def fake(monkeypatch: pytest.MonkeyPatch, **probes: Probe) -> None:
    monkeypatch.setattr(doctor, "_probes", lambda deadline_s: probes)


def fine() -> list[Finding]:
    return [Finding("ok", "fine", "as it should be")]


def raises() -> NoReturn:
    raise OSError("no such device")


# ---- probes and deadlines -------------------------------------------------------------------------------------------


def test_a_probe_that_hangs_or_raises_costs_its_own_line() -> None:
    release = threading.Event()

    def hangs() -> list[Finding]:
        release.wait(30)
        return []

    def leaves() -> NoReturn:
        sys.exit(3)

    start = time.monotonic()
    probes: dict[str, Probe] = {"hangs": hangs, "raises": raises, "leaves": leaves, "fine": fine}
    found = list(examine(probes, 0.3))
    assert time.monotonic() - start < 5
    release.set()
    assert [(f.mark, f.name) for f in found] == [
        ("!!", "hangs"),
        ("!!", "raises"),
        ("!!", "leaves"),
        ("ok", "fine"),
    ]
    assert "no answer within 0.3 s" in found[0].text and found[1].text == "OSError: no such device"


def test_what_is_missing_but_optional_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, some=lambda: [Finding("--", "extra", "missing x: pip install x"), *fine()])
    result = run()
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == "--  extra         missing x: pip install x\nok  fine          as it should be\n"


def test_something_broken_gives_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, raises=raises, fine=fine)
    result = run()
    assert result.exit_code == 1 and "ok  fine" in result.stdout
    assert "!!  raises" in result.stdout and "1 thing to repair" in result.stderr


def test_what_packages_say_stays_one_line_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def hostile() -> NoReturn:
        raise ValueError("[red]\x1b[2J\nok  all is well")

    fake(monkeypatch, hostile=hostile)
    result = run()
    assert result.stdout == "!!  hostile       ValueError: [red]\ufffd[2J ok all is well\n"


# ---- this installation ----------------------------------------------------------------------------------------------


def test_a_sound_installation_is_told_and_torch_stays_out_of_the_process() -> None:
    code = """
import sys
from trace_gym.cli import app, doctor
doctor.ASK_TORCH = 'print(\\'{"version": "9", "threads": 3, "cuda": ["H200, 140 GiB"], "mps": false}\\')'
try:
    app(["doctor"])
except SystemExit as done:
    assert not {"torch", "transformers", "datasets"} & sys.modules.keys()
    raise
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = {line[4:].split()[0]: line for line in done.stdout.splitlines()}
    assert f"imported from {Path(trace_gym.__file__).parent}" in lines["trace-gym"]
    assert lines["python"].startswith(f"ok  python        {sys.version.split()[0]}")
    assert f"{len(os.sched_getaffinity(0))} cores" in lines["machine"] and "GiB of memory" in lines["machine"]
    assert f"gymnasium {gymnasium.__version__}" in lines["packages"]
    assert re.match(r"ok  algorithms    (.*, )?grpo", lines["algorithms"])
    assert "trace_gym/Math-v0" in lines["environments"]
    assert re.search(r"started and answered in \d+\.\d s", lines["math"])
    assert tempfile.gettempdir() in lines["temp"] and "[train]" in lines and "[models]" in lines
    if importlib.util.find_spec("torch"):
        assert re.match(r"ok  torch         9 on H200, 140 GiB; cpu \(3 of its threads\)", lines["torch"])


def test_help_has_an_example() -> None:
    assert re.search(r"Example:\s+trace-gym doctor", run("--help").stdout)


# ---- broken ones ----------------------------------------------------------------------------------------------------


def only(probe: Probe) -> Finding:
    (finding,) = probe()
    return finding


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch to be installed")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise OSError('libcudart.so.12: cannot open')", "cannot be imported: OSError: libcudart.so.12"),
        ("import os; os.abort()", "cannot be imported: the process ended with status -6"),
        ("import time; time.sleep(30)", "within 1 s"),
    ],
)
def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    monkeypatch.setattr(doctor, "ASK_TORCH", script)
    start = time.monotonic()
    finding = only(lambda: doctor._torch(1.0 if "sleep" in script else 30.0))
    assert finding.mark == "!!" and said in finding.text and time.monotonic() - start < 20


def test_without_torch_it_says_what_needs_it_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = only(lambda: doctor._torch(1.0))
    assert finding.mark == "--" and "train, eval" in finding.text
    assert re.search(r"pip install .*\[train\]'", finding.text)


def asking_for(monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(requirements))


def test_a_package_that_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    asking_for(
        monkeypatch,
        "numpy>=99",
        "no-such-package",
        "rich",
        'pytest; extra == "train"',
        'x; python_version < "3"',
    )
    finding = only(doctor._packages)
    assert finding.mark == "!!" and re.search(
        r"numpy>=99 \(there is \d\S+\), no-such-package: pip", finding.text
    )
    assert "rich" not in finding.text
    present, lacking = doctor._satisfied([Requirement("rich"), Requirement("rich<1")])
    assert present == [f"rich {importlib.metadata.version('rich')}"] and lacking[0].startswith(
        "rich<1 (there is"
    )


def test_an_extra_that_is_missing_is_told_with_its_use_and_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking_for(monkeypatch, "numpy", 'no-such-package; extra == "train"', 'rich; extra == "data"')
    found = {finding.name: finding for finding in doctor._extras()}
    train = found["[train]"]
    assert train.mark == "--" and "missing no-such-package (for warmup, train" in train.text
    assert train.text.endswith("[train]'") and found["[data]"].mark == "ok"
    assert found["[data]"].text.startswith("rich ")


def test_trace_gym_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    for question in ("version", "metadata", "requires"):
        monkeypatch.setattr(importlib.metadata, question, absent)
    finding = only(doctor._installation)
    assert finding.mark == "!!" and "not installed" in finding.text and "pip install" in finding.text
    assert only(doctor._python).mark == "ok"
    assert {f.mark for f in doctor._extras()} == {"--"}
    found = list(examine({"packages": doctor._packages}, 9.0))
    assert found[0].mark == "!!"


def test_the_command_is_that_of_a_checkout_only_in_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert doctor._pip("train") == "pip install 'trace-gym[train]'"
    (tmp_path / "pyproject.toml").touch()
    assert doctor._pip() == f"pip install -e '{tmp_path}'"


def test_a_broken_plugin_names_its_distribution_beside_the_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken_one-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-one\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[trace_gym.algorithms]\naaa = no_such_module:X\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken, good = doctor._algorithms()
    assert broken.mark == "!!" and "broken-one" in broken.text
    assert good.mark == "ok" and "grpo" in good.text


def test_no_algorithm_at_all_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "algorithm_names", dict)
    assert only(doctor._algorithms).mark == "!!"


@pytest.fixture
def broken_env() -> Iterator[None]:
    gymnasium.register("tests/Broken-v0", entry_point="no_such_module:Env")
    yield
    del gymnasium.registry["tests/Broken-v0"]


def test_a_broken_environment_is_told(broken_env: None) -> None:
    broken, good = doctor._environments()
    assert broken.mark == "!!" and "tests/Broken-v0 cannot be loaded: ModuleNotFoundError" in broken.text
    assert "trace_gym/Math-v0" in good.text


def test_a_judge_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trace_gym.envs.math import judge

    monkeypatch.setattr(judge, "_WORKER", tmp_path / "none.py")
    (finding,) = examine({"math judge": doctor._math_judge}, 30.0)
    assert finding.mark == "!!" and "JudgeError" in finding.text


def test_a_temp_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", raises)
    (finding,) = examine({"temp folder": doctor._temp_folder}, 5.0)
    assert finding.mark == "!!" and "no such device" in finding.text
