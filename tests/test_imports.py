"""The contracts on imports (pyproject.toml) hold, and an import that they forbid breaks them."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("data", "transforms", "models", "pipelines", "runners")


def check(root: pathlib.Path) -> subprocess.CompletedProcess:
    lint = pathlib.Path(sys.executable).parent / "lint-imports"
    return subprocess.run([lint, "--no-cache"], cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy):
    done = check(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models/ease.py", "from transforms.ingest import sources"),
        ("data/store.py", "import kafka"),
        ("pipelines/train.py", "from transforms.ingest import events"),
        ("pipelines/publish.py", "from transforms.ingest.topics import messages"),
        ("pipelines/query.py", "def late():\n    from transforms.ingest import sources"),
        ("transforms/release/counts.py", "from transforms.ingest import sources"),
        ("pipelines/evaluate.py", "from data import store"),
        ("runners/direct.py", "from transforms.ingest import stream"),
    ],
)
def test_a_forbidden_import_is_found(copy, module, line):
    path = copy / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = check(copy)
    assert done.returncode == 1
    assert f"{module.removesuffix('.py').replace('/', '.')} -> " in done.stdout
