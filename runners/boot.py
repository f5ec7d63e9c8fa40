"""Starts the worker of a job on a host that hasn't the job's code: what the job staged is installed, and is what runs.

usage: sottovoce-worker --id=... --provision_endpoint=...   as a runner calls it (--environment_type=PROCESS)
       sottovoce-worker --pool PORT                          a service that starts them (--environment_type=EXTERNAL)

It is what Beam's containers have a program in Go for. It needs Beam and nothing of ours: a copy of this file will do.
"""

import argparse
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

# Before what takes seconds to import: a pool that dies meanwhile is to be missed.
_PARENT = os.getppid()

import grpc  # noqa: E402
from apache_beam.portability.api import (  # noqa: E402
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)
from google.protobuf import json_format  # noqa: E402

_ENDPOINTS = ("provision_endpoint", "logging_endpoint", "artifact_endpoint", "control_endpoint")
_PACKAGES = (".whl", ".tar.gz", ".tar", ".zip")
_KEEP_SECONDS = 86_400
_PATIENCE_SECONDS = 5
_TEARDOWN_SECONDS = 2
_POLL_SECONDS = 0.2


class BootError(RuntimeError):
    """A worker can't be started."""


class Worker(Protocol):
    """A process that works for a job."""

    def is_running(self) -> bool:
        """Whether its process is alive."""

    def close(self) -> None:
        """Tells it to end."""

    def stop(self) -> None:
        """Ends it, by force if it takes its time."""


class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts workers as a runner asks for them. Beam's own pool listens on every interface, this one on loopback.

    Attributes:
        address: where it listens.
    """

    def __init__(self, port: int = 0):
        """Takes the port; 0: any.

        Raises:
            RuntimeError: the port is taken.
        """
        from apache_beam.utils import thread_pool_executor

        # Else two pools would share a port.
        self._server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
        # By name it would be content with ::1 where another process has the port on 127.0.0.1, which is asked first.
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        # TaskManagers number theirs alike, and so do jobs with jars of their own.
        self._working: collections.defaultdict[str, list[Worker]] = collections.defaultdict(list)
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)

    def start(self, request: beam_fn_api_pb2.StartWorkerRequest) -> Worker:
        """Starts a worker."""
        return _Booted(request)

    def StartWorker(  # noqa: N802  Beam's name
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        self._working[request.worker_id].append(self.start(request))
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(  # noqa: N802
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        there = self._working[request.worker_id]
        over = [worker for worker in there if not worker.is_running()]
        # Of several that run, which is meant can't be told: the runner has let go of it, and it ends by itself.
        if meant := over or (there if len(there) == 1 else []):
            worker = meant[0]
            worker.stop()
            with contextlib.suppress(ValueError):  # told twice
                there.remove(worker)
        return beam_fn_api_pb2.StopWorkerResponse()

    def are_working(self) -> bool:
        """Whether the runner has not let go of all of them."""
        return any(worker.is_running() for worker in self._started())

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)
        left = self._left()
        for worker in left:
            worker.close()
        for worker in left:
            worker.stop()

    def _left(self) -> list[Worker]:
        return self._started()

    def _started(self) -> list[Worker]:
        return [worker for workers in [*self._working.values()] for worker in workers]


class _Booted:
    """A process that boots and then works."""

    def __init__(self, request: beam_fn_api_pb2.StartWorkerRequest):
        command = [sys.executable, "-P", str(Path(__file__).absolute()), f"--id={request.worker_id}"]
        command += [f"--{name}={getattr(request, name).url}" for name in _ENDPOINTS]
        # A key pressed in the terminal doesn't reach it: we end it.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603  ours, no shell

    def is_running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.terminate()

    def stop(self) -> None:
        # It ends by itself when the runner has let go of it.
        for seconds, end in ((_TEARDOWN_SECONDS, self.close), (_PATIENCE_SECONDS, self._process.kill)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return
            end()
        self._process.wait()


def main(argv: Sequence[str] | None = None) -> None:
    """The program `sottovoce-worker`."""
    parser = argparse.ArgumentParser(prog="sottovoce-worker", description="A worker for steps in Python of a job on Flink.")
    parser.add_argument("--pool", type=int, metavar="PORT", help="start workers for whoever asks at this port of localhost")
    for name in ("id", *_ENDPOINTS):
        parser.add_argument(f"--{name}", help="given by the runner")
    parser.add_argument("--child-of", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.child_of is not None:
        from apache_beam.runners.worker import sdk_worker_main

        _work(given.child_of, lambda: sdk_worker_main.main([]))
    elif given.pool is not None:
        _serve(given.pool)
    elif given.id and given.provision_endpoint:
        _boot(given)
    else:
        parser.error("give --pool PORT; all else is for a runner to give")


def _serve(port: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        pool = Pool(port)
    except RuntimeError as error:
        sys.exit(f"sottovoce-worker: port {port} of localhost: {error}")
    with pool, contextlib.suppress(KeyboardInterrupt):
        print(f"listening on {pool.address}", flush=True)
        while True:
            signal.pause()


def _boot(given: argparse.Namespace) -> None:
    """Installs what the job staged, and becomes its worker."""
    who = [("worker_id", given.id)]
    with grpc.insecure_channel(given.provision_endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        info = stub.GetProvisionInfo(beam_provision_api_pb2.GetProvisionInfoRequest(), metadata=who).info
    # Flink gives a process of its own no other endpoint than that.
    control, logging, artifacts = (
        getattr(info, name).url or getattr(given, name)
        for name in ("control_endpoint", "logging_endpoint", "artifact_endpoint")
    )
    try:
        with grpc.insecure_channel(artifacts) as channel:
            folder = _take(_Staged(channel, who, info))
    except Exception as error:  # whatever it is: the job has to hear of it
        _refuse(given.id, control, error)
    os.environ |= {
        "WORKER_ID": given.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(control),
        "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(logging),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        # Beam looks for a pickled main session there, in `staged`.
        "SEMI_PERSISTENT_DIRECTORY": str(folder),
        # What is staged wins over what is installed.
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if info.status_endpoint.url:
        os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = _descriptor(info.status_endpoint.url)
    # A new interpreter: this one may have imported another version of what is staged.
    os.execv(sys.executable, [sys.executable, "-P", str(Path(__file__).absolute()), f"--child-of={_PARENT}"])  # noqa: S606


def _descriptor(url: str) -> str:
    return f"url: {json.dumps(url)}"


def _refuse(worker_id: str, control: str, error: Exception) -> NoReturn:
    """Works for the job only to say that it can't: Flink drops what a process prints, and waits for one that ends for ever."""
    from apache_beam.runners.worker import bundle_processor, sdk_worker

    reason = f"the worker {worker_id} on {socket.gethostname()} can't be started: {error}"
    print(reason, file=sys.stderr, flush=True)

    def refuse(bundle: Any, descriptor: beam_fn_api_pb2.ProcessBundleDescriptor) -> NoReturn:
        # Flink would wait for these channels, three minutes, before it hears of an error.
        for transform in descriptor.transforms.values():
            if transform.spec.urn in (bundle_processor.DATA_INPUT_URN, bundle_processor.DATA_OUTPUT_URN):
                port = beam_fn_api_pb2.RemoteGrpcPort.FromString(transform.spec.payload)
                bundle.data_channel_factory.create_data_channel(port)
        raise BootError(reason)

    # With Beam's own way, `deferred_exception`, the worker ends and the job doesn't say why.
    bundle_processor.BundleProcessor.create_execution_tree = refuse
    _work(_PARENT, sdk_worker.SdkHarness(control, worker_id=worker_id).run)


class _Staged:
    """What the job staged, still with the runner."""

    def __init__(self, channel: grpc.Channel, who: list[tuple[str, str]], info: beam_provision_api_pb2.ProvisionInfo):
        self._stub = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        self._who, self._artifacts = who, info.dependencies
        # Flink forgets the hashes of artifacts: `staging.hashes` sends them as an option.
        self._sha256 = json.loads(info.pipeline_options.fields["beam:option:staged_sha256:v1"].string_value or "{}")

    def retrieve(self, directory: Path) -> dict[str, str]:
        """Writes the files into the directory; returns the SHA-256 of each.

        Raises:
            BootError: a file is not what the job staged.
        """
        request = beam_artifact_api_pb2.ResolveArtifactsRequest(artifacts=self._artifacts)
        found = dict(
            self._write(artifact, directory)
            for artifact in self._stub.ResolveArtifacts(request, metadata=self._who).replacements
        )
        wrong = [name for name in {**found, **self._sha256} if found.get(name) != self._sha256.get(name)]
        if wrong and self._sha256:
            raise BootError(f"{', '.join(wrong)}: not what the job staged (by SHA-256); nothing of it was run.")
        return found

    def _write(self, artifact: beam_runner_api_pb2.ArtifactInformation, directory: Path) -> tuple[str, str]:
        name = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
        if not name or Path(name).name != name:
            raise BootError(f"{name!r} is no name for a staged file.")
        hashed = hashlib.sha256()
        request = beam_artifact_api_pb2.GetArtifactRequest(artifact=artifact)
        with (directory / name).open("wb") as file:
            for part in self._stub.GetArtifact(request, metadata=self._who):
                hashed.update(part.data)
                file.write(part.data)
        return name, hashed.hexdigest()


def _take(files: _Staged) -> Path:
    """Returns the folder in which those files are (`staged`) and are installed (`site`); it stays while this process lives.

    Raises:
        BootError: they can't be installed, or others could change what is.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sottovoce" / "staged"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BootError(f"{root} is not for us alone: others could have their own code run.")
    # One at a time: of the workers of a job, the first installs.
    with _locked(root / "lock"):
        new = Path(tempfile.mkdtemp(dir=root))
        try:
            (new / "staged").mkdir()
            key = [sys.prefix, sys.version, sorted(files.retrieve(new / "staged").items())]
            folder = root / hashlib.sha256(json.dumps(key).encode()).hexdigest()
            if not folder.exists():
                _install(new / "staged", new / "site")
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        os.utime(folder)
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
        os.set_inheritable(held, True)
        _prune(root)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune(root: Path) -> None:
    """Deletes the folders that no worker has, and that none has taken for a day."""
    for folder in root.iterdir():
        if folder.is_dir() and folder.stat().st_mtime < time.time() - _KEEP_SECONDS:
            held = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _install(staged: Path, site: Path) -> None:
    """Installs the packages and the requirements among the staged files, and nothing that they depend on."""
    site.mkdir()
    packages = [name for name in _lines(staged / "extra_packages.txt") if name]
    packages += [name for name in ["workflow.tar.gz"] if (staged / name).exists()]
    needed = [line for line in _lines(staged / "requirements.txt") if not _is_installed(line)]
    if not packages and not needed:
        return
    (staged / ".needed.txt").write_text("\n".join(needed), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-build-isolation", "--no-compile", f"--target={site}", f"--find-links={staged}"]
    cached = [path for path in staged.iterdir() if path.name.endswith(_PACKAGES) and path.name not in packages]
    if cached or not needed:
        command.append("--no-index")
    # All at once: pip would have a second one replace folders of the first (a namespace's).
    command += ["-r", str(staged / ".needed.txt"), *(str(staged / name) for name in packages)]
    result = subprocess.run(  # noqa: S603  ours, no shell
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise BootError(f"pip can't install what the job staged:\n{result.stdout[-2000:]}")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _is_installed(line: str) -> bool:
    """Whether a line of requirements pins the version that is installed, or says nothing."""
    pin = re.fullmatch(r"([\w.-]+)(?:\[[\w.,-]*\])?==([^\s;]+)", line.strip())
    if pin is None:
        return not line.split("#")[0].strip()
    try:
        return metadata.version(pin[1]) == pin[2]
    except metadata.PackageNotFoundError:
        return False


def _work(parent: int, harness: Callable[[], None]) -> NoReturn:
    """Works, until the runner lets go of it or the process that started this is over."""
    # A main session that is loaded may have other things by these names.
    getppid, sleep, end = os.getppid, time.sleep, os._exit

    def end_with_parent() -> None:
        while getppid() == parent:
            sleep(_POLL_SECONDS)
        end(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    code = 0
    try:
        with contextlib.suppress(grpc.RpcError):  # the runner has ended
            harness()
    except Exception:
        traceback.print_exc()
        code = 1
    # Threads that are left would keep it.
    end(code)


if __name__ == "__main__":
    main()
