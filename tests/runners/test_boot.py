"""Workers on a host that hasn't our code: PROCESS and EXTERNAL, from a venv of the dependencies alone, in another folder."""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import apache_beam as beam
import grpc
import pytest
from apache_beam.internal.cloudpickle import cloudpickle
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
)
from apache_beam.runners.portability import artifact_service, stager

from runners import boot, flink, staging
from tests.runners.processes import LOOPBACK, command_of, listening, wait_for
from transforms import workers

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("data", "models", "pipelines", "runners", "transforms")


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


@contextlib.contextmanager
def pool(host: pathlib.Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A worker pool, and its address; the caches of its workers are in the host's folder."""
    command = [host / "sottovoce-worker", "--pool", "0"]
    process = subprocess.Popen(
        command, cwd=host, env={"XDG_CACHE_HOME": str(host / "cache")}, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


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
    with beam.Pipeline(options=flink.options(flags)) as root:
        for i in range(2):
            _ = root | f"Create{i}" >> beam.Create([i]) | f"Note{i}" >> workers.run_in(i, beam.Map(note, str(out)))
    return [json.loads((out / str(i)).read_text()) for i in range(2)]


def folders(host: pathlib.Path) -> set[pathlib.Path]:
    """What workers have installed there."""
    return {path.parent for path in host.glob("cache/sottovoce/staged/*/site")}


def test_process_workers_run_the_code_that_came_with_the_job(flink_jars, host, tmp_path):
    shared, pinned = tmp_path / "shared", tmp_path / "requirements.txt"
    # What the host has needn't be fetched.
    pinned.write_text("".join(f"{name}=={importlib.metadata.version(name)}\n" for name in ("apache-beam", "numpy")))
    flags = [*process(host), f"--artifacts_dir={shared}", f"--requirements_file={pinned}", "--requirements_cache=skip"]
    before = folders(host)
    seen = run(flags, tmp_path / "out")
    (folder,) = folders(host) - before
    assert [each[1:] for each in seen] == [[f"{folder}/site/transforms/workers.py", "ours", str(host / "venv")]] * 2
    assert seen[0][0] != seen[1][0]
    wait_for(lambda: not any(command_of(pid) for pid, *_ in seen), 5)
    assert list(shared.iterdir()) == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}


def test_external_workers_run_the_setup_file_of_the_user(flink_jars, host, tmp_path):
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("samples", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    with (source / "transforms" / "workers.py").open("a") as file:
        file.write('EDITION = "changed"\n')
    with pool(host) as (_, address):
        flags = ["--environment_type=EXTERNAL", f"--environment_config={address}", f"--setup_file={source / 'setup.py'}"]
        seen = run(flags, tmp_path / "out")
    assert [each[2:] for each in seen] == [["changed", str(host / "venv")]] * 2
    assert {pathlib.Path(each[1]).parents[2].parent for each in seen} == {host / "cache" / "sottovoce" / "staged"}


def test_without_the_code_the_job_says_what_is_missing(flink_jars, host, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "with_code", lambda options, directory: options)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError: No module named 'transforms'"):
        run(process(host), tmp_path / "out")


class Job(beam_provision_api_pb2_grpc.ProvisionServiceServicer, beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """As much of a runner as workers need to start: it has files staged, and asks each worker for one bundle."""

    def __init__(self, sha256: dict[str, str], *files: pathlib.Path):
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
        self.port = self._server.add_insecure_port("localhost:0")
        self.answers = queue.Queue()
        self.info = beam_provision_api_pb2.ProvisionInfo(
            dependencies=[stager.Stager._create_file_stage_to_artifact(str(path), path.name) for path in files]
        )
        for name in ("control_endpoint", "artifact_endpoint", "logging_endpoint"):
            getattr(self.info, name).url = f"localhost:{self.port}"
        self.info.pipeline_options["beam:option:staged_sha256:v1"] = json.dumps(sha256)
        read = artifact_service.BeamFilesystemHandler(None).file_reader
        beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(
            artifact_service.ArtifactRetrievalService(read), self._server
        )
        beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(self, self._server)
        beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(self, self._server)

    def GetProvisionInfo(self, request, context):  # noqa: N802
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self.info)

    def GetProcessBundleDescriptor(self, request, context):  # noqa: N802
        return beam_fn_api_pb2.ProcessBundleDescriptor(id=request.process_bundle_descriptor_id)

    def Control(self, responses, context):  # noqa: N802
        bundle = beam_fn_api_pb2.ProcessBundleRequest(process_bundle_descriptor_id="none")
        yield beam_fn_api_pb2.InstructionRequest(instruction_id="1", process_bundle=bundle)
        for response in responses:
            self.answers.put(response.error)

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None)

    def ask(self, address: str, n_workers: int) -> list[str]:
        """Has a pool start workers for this; returns their answers."""
        with grpc.insecure_channel(address) as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            for i in range(n_workers):
                request = beam_fn_api_pb2.StartWorkerRequest(worker_id=str(i))
                request.provision_endpoint.url = f"localhost:{self.port}"
                stub.StartWorker(request)
            return [self.answers.get(timeout=60) for _ in range(n_workers)]


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_workers_share_what_is_installed_and_end_with_their_pool(host, tmp_path, number):
    wheel, needed = tmp_path / "tiny-1.0-py3-none-any.whl", tmp_path / "requirements.txt"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", f"NUMBER = {number}")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    needed.write_text("tiny==1.0\n")
    before = folders(host)
    with pool(host) as (process, address), Job({}, wheel, needed) as job:
        assert job.ask(address, 2) == ["", ""]
        (folder,) = folders(host) - before
        assert (folder / "site" / "tiny.py").read_text() == f"NUMBER = {number}"
        working = children(process.pid)
        assert len(working) == 2
        assert set(listening({process.pid})) <= LOOPBACK
        process.send_signal(number)
        process.wait()
        wait_for(lambda: not any(map(command_of, working)), 5)


@pytest.mark.parametrize(
    ("name", "sha256", "reason"),
    [
        ("tiny-1.0.zip", {"tiny-1.0.zip": "0" * 64}, "tiny-1.0.zip: not what the job staged"),
        ("extra_packages.txt", {}, "pip can't install what the job staged"),
    ],
    ids=["other content", "no package"],
)
def test_a_worker_that_cannot_be_started_tells_the_job(host, tmp_path, name, sha256, reason):
    (tmp_path / name).write_text("missing-1.0.zip\n")
    before = folders(host)
    with pool(host) as (_, address), Job(sha256, tmp_path / name) as job:
        assert reason in job.ask(address, 1)[0]
    assert folders(host) == before


@pytest.mark.parametrize("who", ["others", "another owner"])
def test_a_folder_that_others_could_put_code_into_is_refused(tmp_path, monkeypatch, who):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "sottovoce" / "staged"
    root.mkdir(parents=True, mode=0o700)
    if who == "others":
        root.chmod(0o770)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
    with pytest.raises(boot.BootError, match=f"{root} is not for us alone"):
        boot._take(None)
    assert list(root.iterdir()) == []


def test_a_parent_that_ends_during_the_imports_is_missed(tmp_path):
    (tmp_path / "grpc.py").write_text(
        "import os, sys, time\n"
        "os.write(1, b'importing ')\n"
        "while os.getppid() == sys.modules['__main__']._PARENT: time.sleep(0.1)\n"
        "os.write(1, b'missed')\n"
        "os._exit(0)\n"
    )
    words = [sys.executable, "-P", boot.__file__, "--id=1", "--provision_endpoint=localhost:9"]
    start = f"import subprocess, time; subprocess.Popen({words!r}); time.sleep(99)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout.read(10) == b"importing "
        parent.kill()
        assert parent.stdout.read() == b"missed"


class Asleep(boot.Pool):
    """A pool whose workers sleep until the runner is said to let go of them, and that can tell how each ended."""

    def start(self, request):
        command = [sys.executable, "-c", "input()"]
        worker = boot._Booted.__new__(boot._Booted)
        worker._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        return worker


@pytest.mark.parametrize("is_over", [True, False], ids=["it has ended", "it is about to end"])
def test_a_worker_is_not_ended_for_another_of_the_same_number(is_over):
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1")
    with Asleep() as pool:
        for _ in range(2):
            pool.StartWorker(request, None)
        mine, other = (worker._process for worker in pool._left())
        if is_over:
            mine.communicate(b"\n")
        pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), None)
        assert other.poll() is None
        assert mine.poll() == (0 if is_over else None)
    assert mine.poll() is not None
    assert other.poll() is not None


def test_two_pools_do_not_share_a_port():
    with boot.Pool() as pool, pytest.raises(RuntimeError, match="Failed to bind"):
        boot.Pool(int(pool.address.split(":")[1]))


def test_a_pool_does_not_share_a_port_with_what_listens_on_ipv4_alone():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(RuntimeError, match="Failed to bind"):
        boot.Pool(other.getsockname()[1])


def test_what_no_worker_has_is_deleted_after_a_day(tmp_path):
    for name in ("old", "held", "new"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, None if name == "new" else (0, 0))
    held = os.open(tmp_path / "held", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    boot._prune(tmp_path)
    os.close(held)
    assert {path.name for path in tmp_path.iterdir()} == {"held", "new"}


def test_the_wheel_holds_our_packages_and_is_always_the_same(tmp_path):
    hashes = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hashes.add(hashlib.sha256(staging.pack(tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1
    (wheel,) = (tmp_path / "a").iterdir()
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = {name for name in listed.splitlines() if not name.startswith("data/samples/")}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == ours


def test_code_that_the_user_gives_is_not_packed(tmp_path):
    for flags in (["--setup_file=/x/setup.py"], ["--extra_package=/x/sottovoce-0.2.tar.gz"]):
        options = flink.options(flags)
        assert staging.with_code(options, tmp_path) is options
    assert list(tmp_path.iterdir()) == []
