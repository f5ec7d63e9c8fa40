"""Workers on a host that hasn't our code: PROCESS and EXTERNAL, from a venv of the dependencies alone, in another folder."""

import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile

import apache_beam as beam
import pytest
from apache_beam.internal.cloudpickle import cloudpickle
from apache_beam.options import pipeline_options

from runners import boot, flink, staging
from tests.runners.processes import command_of, listening
from tests.runners.test_flink import LOOPBACK, wait_for
from transforms import workers

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def host(tmp_path_factory) -> pathlib.Path:
    """A folder with the program `sottovoce-worker`, in a venv without our code.

    The venv has this one's packages by their folder's path. What pip has put there for ours is a `.pth` file that names our
    source folder (make setup installs so), and Python doesn't follow it there: as on a host that has the packages of
    constraints.txt, and of ours one file.
    """
    folder = tmp_path_factory.mktemp("host")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    packages = pathlib.Path(pytest.__file__).parents[1]
    (next((folder / "venv" / "lib").iterdir()) / "site-packages" / "pinned.pth").write_text(f"{packages}\n")
    python, program = folder / "venv" / "bin" / "python", folder / "sottovoce-worker"
    program.write_text(f"#!{python}\n{pathlib.Path(boot.__file__).read_text()}")
    program.chmod(0o700)
    real = program.rename(folder / "real")
    program.write_text(f'#!/bin/sh\nexec {real} "$@" >> /tmp/hb-err 2>&1\n')
    program.chmod(0o700)
    for package in ("transforms", "runners"):
        found = subprocess.run([python, "-c", f"import {package}"], cwd=folder, env={}, capture_output=True, text=True)
        assert f"ModuleNotFoundError: No module named '{package}'" in found.stderr
    assert subprocess.run([python, "-c", "import grpc"], cwd=folder, env={}).returncode == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(host, monkeypatch):
    """This is not started where our code is, and Flink and its workers neither. Steps of this file go along as they are."""
    monkeypatch.chdir(host)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(host / "state"))
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def process(host: pathlib.Path) -> list[str]:
    config = {"command": str(host / "sottovoce-worker"), "env": {"XDG_CACHE_HOME": str(host / "cache")}}
    return ["--environment_type=PROCESS", f"--environment_config={json.dumps(config)}"]


def note(number, out: str):
    (pathlib.Path(out) / str(number)).write_text(
        json.dumps([os.getpid(), workers.__file__, getattr(workers, "EDITION", "ours"), sys.prefix])
    )


def run(flags, out: pathlib.Path) -> list[list]:
    """Runs a job whose two steps import ours, each in an environment of its own; returns what they saw."""
    out.mkdir()
    with beam.Pipeline(options=flink.options(flags, directory=out.parent / "flink")) as root:
        for i in range(2):
            _ = root | f"Create{i}" >> beam.Create([i]) | f"Note{i}" >> workers.run_in(i, beam.Map(note, str(out)))
    return [json.loads((out / str(i)).read_text()) for i in range(2)]


def folders(host: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in (host / "cache" / "sottovoce" / "staged").iterdir() if path.is_dir()]


def test_process_workers_run_the_code_that_came_with_the_job(flink_jars, host, tmp_path):
    shared = tmp_path / "shared"
    seen = run([*process(host), f"--artifacts_dir={shared}"], tmp_path / "out")
    (folder,) = folders(host)
    assert [each[1:] for each in seen] == [[f"{folder}/site/transforms/workers.py", "ours", str(host / "venv")]] * 2
    assert seen[0][0] != seen[1][0]
    wait_for(lambda: not any(command_of(pid) for pid, *_ in seen), 5)
    assert list(shared.iterdir()) == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}
