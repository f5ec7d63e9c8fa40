"""What README.md tells people to type works."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BIN = pathlib.Path(sys.executable).parent
README = (ROOT / "README.md").read_text()


def commands(text: str) -> list[str]:
    """The lines of its `sh` blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s{2,}#.*", "", line) for line in lines if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> pathlib.Path:
    """The files git tracks, elsewhere, as a clone would have them; modification times kept, so that make has nothing to do."""
    if not (BIN / ".ready").exists():
        assert not os.environ.get("CI"), "CI runs the tests by `make test`, which leaves .ready beside python."
        pytest.skip("the README's commands run only in the environment that `make` made: run `make test`")
    target = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    sample = (target / "data/samples/online_retail.toml").read_text()
    shutil.copy2(target / "data/samples/online_retail.parquet", target / "mine.parquet")
    changes = {
        "build/retail": "build/mine",
        "pseudonym.key": "my.key",
        "online-retail": "mine",
        "data/samples/online_retail.parquet": "mine.parquet",
    }
    for old, new in changes.items():
        sample = sample.replace(old, new)
    (target / "my_job.toml").write_text(sample)
    weeks = '[window]\nsize = "1w"\nbudget_share = 0.02\nend = 2010-12-16\nstart = 2010-12-01'
    windowed = re.sub(r"\[window\]\nsize.*?\nend[^\n]*", weeks, sample, flags=re.DOTALL)
    shutil.copy2(target / "mine.parquet", target / "weeks.parquet")
    (target / "my_weeks.toml").write_text(windowed.replace("mine", "weeks"))
    return target


@pytest.mark.long
def test_the_commands_of_the_readme_run(clone, tmp_path):
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "XDG_STATE_HOME": str(tmp_path)}
    ran = []
    for command in commands(README):
        if command.startswith("make test"):
            continue  # this is it
        given = command.replace("make demo", f"make demo VENV={BIN.parent}")
        done = subprocess.run(
            given, shell=True, cwd=clone, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        ran.append(done.stdout)
    assert "recommend" in README
    assert any("WHITE HANGING HEART T-LIGHT HOLDER" in out for out in ran)


def test_every_command_and_macro_is_in_the_readme():
    done = subprocess.run([BIN / "sottovoce", "--help"], capture_output=True, text=True, check=True)
    names = re.findall(r"^    (\w+) ", done.stdout, flags=re.MULTILINE)
    assert names == [
        "run",
        "release",
        "train",
        "publish",
        "stream",
        "schedule",
        "status",
        "budget",
        "evaluate",
        "audit",
        "models",
        "tune",
        "report",
        "query",
        "pull",
        "key",
        "rotate",
        "forget",
        "letters",
        "synth",
        "kafka",
        "flink",
        "replay",
    ]
    for name in names:
        assert f"sottovoce {name}" in README


@pytest.mark.parametrize("document", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_every_file_that_a_document_names_is_there(document):
    text = (ROOT / "docs" / document).read_text()
    for name in re.findall(r"`((?:data|transforms|models|pipelines|runners|tests|docs)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_no_document_has_a_gap(document):
    assert "@@" not in (ROOT / document).read_text()


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
