"""What gets installed: every file once, under one name, importable without torch."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.checkout  # what is packed, not what came out

ROOT = Path(__file__).parent.parent
FOLDERS = ("envs", "algorithms", "benchmarks")  # at the top in a checkout, under trace_gym when installed
NOT_SHIPPED = "benchmarks/results/"
POLICY_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "ray", "vllm", "tokenizers")


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout's settings; `path` stands first on the import path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GIT_"))}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )


def shipped_files() -> set[str]:
    """The package's files by their place in the checkout: those git does not ignore, without the links."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to know which files belong to the package")
    listing = run("git", "ls-files", "-z", "-co", "--exclude-standard", "--", "trace_gym", *FOLDERS, cwd=ROOT)
    assert listing.returncode == 0, listing.stderr
    files = (name for name in listing.stdout.split("\0") if name and not name.startswith(NOT_SHIPPED))
    return {name for name in files if (ROOT / name).is_file() and not (ROOT / name).is_symlink()}


def installed_name(checkout_name: str) -> str:
    top = checkout_name.split("/")[0]
    return f"trace_gym/{checkout_name}" if top in FOLDERS else checkout_name


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of the working tree, and the wheel made from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--target", target)
    done = run(sys.executable, "-m", "pip", "install", *options, archives[1], cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def test_the_sdist_carries_every_package_file_once_and_no_link(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        members = sdist.getmembers()
    assert [m.name for m in members if m.issym() or m.islnk()] == []
    names = {m.name.split("/", 1)[1] for m in members if m.isfile()}
    assert {name for name in names if name.split("/")[0] in ("trace_gym", *FOLDERS)} == shipped_files()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "tests/test_packaging.py"} <= names


def test_the_wheel_carries_every_package_file_under_trace_gym(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        links = [
            info.filename for info in wheel.infolist() if (info.external_attr >> 16) & 0o170000 == 0o120000
        ]
    assert links == []
    assert names == {installed_name(name) for name in shipped_files()}
    assert "trace_gym/py.typed" in names


def test_every_entry_point_names_a_module_of_the_wheel(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
        text = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    targets = re.findall(r"^\S+ = ([\w.]+):\w+$", text, re.MULTILINE)
    assert len(targets) >= 2
    for module in targets:
        stem = module.replace(".", "/")
        assert names & {f"{stem}.py", f"{stem}/__init__.py"}, (
            f"{module} is named as an entry point and is not there"
        )


def test_the_installed_wheel_imports_from_its_own_files(installed: Path, tmp_path: Path) -> None:
    program = f"""
import trace_gym, trace_gym.envs, trace_gym.algorithms, trace_gym.benchmarks
for module in (trace_gym, trace_gym.envs, trace_gym.algorithms, trace_gym.benchmarks):
    assert module.__file__.startswith({str(installed)!r}), module.__file__
"""
    done = run(sys.executable, "-P", "-c", program, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["trace_gym", "trace_gym.envs", "trace_gym.cli"])
def test_importing_loads_none_of_the_policy_packages(module: str, installed: Path, tmp_path: Path) -> None:
    program = f"""
import sys, {module}
assert {module}.__file__.startswith({str(installed)!r}), {module}.__file__
assert not (loaded := set({POLICY_PACKAGES!r}) & set(sys.modules)), loaded
"""
    done = run(sys.executable, "-P", "-c", program, cwd=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_bare_import_of_a_folder_is_refused(folder: str) -> None:
    done = run(sys.executable, "-c", f"import {folder}", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"ImportError: import trace_gym.{folder}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_are_linked_relatively(folder: str) -> None:
    link = ROOT / "trace_gym" / folder
    if not link.is_symlink():
        pytest.skip("not a checkout: archives carry no links")
    assert os.readlink(link) == f"../{folder}"


def test_the_changelog_opens_with_the_version() -> None:
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "trace_gym/_version.py").read_text(), re.MULTILINE)
    entry = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version and entry and version[1] == entry[1]


def test_the_cpu_constraints_fit_the_declared_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + [
        r for extra in project["optional-dependencies"].values() for r in extra
    ]
    ranges = {r.name.lower(): r.specifier for r in map(Requirement, declared)}
    lines = (ROOT / "constraints-cpu.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert "torch" in {pin.name for pin in pins}
    for pin in pins:
        version = str(pin.specifier).removeprefix("==")
        assert ranges[pin.name].contains(version), f"{pin} is outside {pin.name}{ranges[pin.name]}"
