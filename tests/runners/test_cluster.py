"""A Flink cluster on this machine: real jobs on it, what becomes of them, and who can reach it."""

import fcntl
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import time

import apache_beam as beam
import pytest

from runners import background, flink, flink_java, flink_rest, jars
from runners import cluster as clusters
from tests.runners import counting
from tests.runners.processes import LOOPBACK, flink_processes, listening, wait_for


def numbers(cluster: clusters.Cluster) -> set[int]:
    """Of the processes."""
    names = [process.name for process in (cluster.job_manager, *cluster.task_managers)]
    return {int((cluster.directory / f"{name}.pid").read_text()) for name in names}


def states(cluster: clusters.Cluster, name: str) -> list[str]:
    return [job.state for job in cluster.rest.jobs() if job.name == name]


def uploaded(cluster: clusters.Cluster) -> list[pathlib.Path]:
    return list(cluster.directory.rglob("blob_p-*"))


def flags(cluster: clusters.Cluster, name: str) -> list[str]:
    return [f"--flink_master={cluster.master}", f"--job_name={name}"]


@pytest.mark.parametrize("number", [os.getpid(), "no number"], ids=["another program's", "damaged"])
def test_a_stale_process_number_stops_nothing(tmp_path, number):
    (tmp_path / "jobmanager.pid").write_text(f"{number}\n")
    assert clusters.Cluster(tmp_path).stop() is False


def test_a_process_that_is_about_to_start_is_not_taken_for_the_one_before(tmp_path):
    process = background.Process(tmp_path, "any")
    (tmp_path / "any.pid").write_text(f"{os.getpid()}\n")
    with process.lock() as lock:
        assert lock is not None
        assert process.is_running()
        with pytest.raises(background.BackgroundError, match=r"can't be sent a signal .*any\.pid"):
            process.stop()
    assert not process.is_running()


def test_who_asks_for_a_process_is_not_taken_for_it(tmp_path):
    (tmp_path / "any.lock").touch()
    with (tmp_path / "any.lock").open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not background.Process(tmp_path, "any").is_running()


def test_a_process_is_started_in_its_directory_with_a_new_log_and_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("SOTTOVOCE_PSEUDONYM_KEY", "secret")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xint")
    process = background.Process(tmp_path, "any")
    for number in range(3):
        with process.lock(patience=5) as lock:
            process.start(["sh", "-c", f"pwd; env; echo {'x' * 3000} {number}"], lock)
        wait_for(lambda: not process.is_running(), 5)
    first, *variables, _ = process.log_file.read_text().splitlines()
    assert first == str(tmp_path)
    assert "JAVA_TOOL_OPTIONS=-Xint" in variables
    assert not any("SOTTOVOCE" in variable for variable in variables)
    assert process.log_tail() == f"{'x' * 1997} 2\n"
    assert {path.name for path in tmp_path.glob("*.log*")} == {"any.log", "any.log.1"}
    assert (tmp_path / "any.log.1").read_text().endswith("x 1\n")


@pytest.mark.parametrize("port", [70_000, None], ids=["beyond all", "taken"])
def test_a_port_that_can_not_be_used_is_an_error(flink_jars, tmp_path, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = port or taken.getsockname()[1]
        with pytest.raises(clusters.ClusterError, match=f"port {port} can't be used"):
            clusters.Cluster(tmp_path, port).start()


@pytest.fixture
def task_manager(tmp_path):
    """Something that holds the lock of one, with whatever is in the file of settings."""
    process = background.Process(tmp_path, "taskmanager-1")
    with process.lock() as lock:
        process.start(["sleep", "60"], lock)
    yield process
    process.stop()


@pytest.mark.parametrize("settings", [None, "{", "[]", '{"port": 1}'], ids=["missing", "cut", "a list", "incomplete"])
def test_a_cluster_that_runs_without_its_settings_can_only_be_stopped(task_manager, settings):
    if settings is not None:
        (task_manager.directory / "settings.json").write_text(settings)
    with pytest.raises(clusters.ClusterError, match=r"settings\.json is missing or damaged.*stop it"):
        clusters.Cluster(task_manager.directory).start()
    assert clusters.Cluster(task_manager.directory).stop() is True
    assert not task_manager.is_running()


def test_a_cluster_that_runs_stays_as_it_is_and_says_so(task_manager, caplog):
    given = {"port": 1, "n_task_managers": 1, "slots": 2, "rpc_port": 3}
    (task_manager.directory / "settings.json").write_text(json.dumps(given))
    assert clusters.Cluster(task_manager.directory, 1, 1, 2).master == "127.0.0.1:1"
    assert caplog.messages == []
    assert clusters.Cluster(task_manager.directory, 8081, 1, 4).master == "127.0.0.1:1"
    assert [message.split(":")[0] for message in caplog.messages] == ["port is 1, not 8081", "slots is 2, not 4"]


@pytest.mark.parametrize(("master", "reason"), [("127.0.0.1:1", "no Flink answers"), ("127.0.0.1:x", "is no HOST:PORT")])
def test_a_master_that_does_not_answer_is_named(flink_jars, master, reason):
    root = beam.Pipeline(options=flink.options([f"--flink_master={master}"]))
    _ = root | beam.Create([1])
    with pytest.raises(flink_rest.FlinkError, match=reason):
        root.run()
    assert flink_processes(os.getpid()) == set()


def test_a_cluster_shows_what_it_keeps_to_its_owner_alone(cluster):
    assert stat.S_IMODE(cluster.directory.stat().st_mode) == 0o700
    assert cluster.is_running()
    assert cluster.rest.overview().slots == 4
    with pytest.raises(flink_rest.FlinkError, match=f"Flink at {cluster.master} refuses"):
        cluster.rest.cancel("0" * 32)


def test_batch(cluster, tmp_path):
    def write(pair):
        (tmp_path / pair[0]).write_text(str(sorted(pair[1])))

    with beam.Pipeline(options=flink.options(flags(cluster, "batch"))) as root:
        _ = root | beam.Create([("a", 1), ("b", 2), ("a", 3)]) | beam.GroupByKey() | beam.Map(write)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "[1, 3]", "b": "[2]"}
    assert (root.result.state, states(cluster, "batch")) == ("DONE", ["FINISHED"])
    seconds, vertices = cluster.rest.vertices(next(job.job_id for job in cluster.rest.jobs() if job.name == "batch"))
    [grouped] = [vertex for vertex in vertices if vertex.name.startswith("GroupReduce")]
    assert (grouped.ways, grouped.read_bytes > 0) == ({"Hash Partition on [0]"}, True)
    assert [(subtask.records, 0 <= subtask.start <= subtask.end <= seconds) for subtask in grouped.subtasks] == [(2, True)]
    assert uploaded(cluster) == []
    assert flink_processes(os.getpid()) == set()


def test_a_stream_survives_its_task_manager_and_others_jobs_and_stops_with_a_savepoint(cluster, tmp_path):
    words = [sys.executable, "-m", "tests.runners.counting", str(tmp_path / "other"), str(tmp_path / "other")]
    (tmp_path / "other").mkdir()
    other = subprocess.Popen([*words, *flags(cluster, "other")], stdout=subprocess.DEVNULL)
    state = tmp_path / "state"
    options = flink.options(flags(cluster, "mine"), streaming=True, checkpoint_seconds=1, directory=state)
    root = beam.Pipeline(options=options)
    counting.build(root, tmp_path)
    result = root.run()
    wait_for(lambda: len(counting.windows(tmp_path)) >= 3 and flink.last_checkpoint(state))
    wait_for(lambda: counting.windows(tmp_path / "other"))
    # Beam's servers among them.
    addresses = set(listening(numbers(cluster)))
    assert addresses
    assert addresses <= LOOPBACK
    other.send_signal(signal.SIGKILL)
    other.wait()
    wait_for(lambda: states(cluster, "other") == ["CANCELED"], 10)
    assert states(cluster, "mine") == ["RUNNING"]

    [task_manager] = cluster.task_managers
    task_manager.kill()
    killed, n_windows = time.time(), len(counting.windows(tmp_path))
    assert cluster.job_manager.is_running()
    cluster.start()
    wait_for(lambda: len(counting.windows(tmp_path)) >= n_windows + 3)
    [job] = [job for job in cluster.rest.jobs() if job.name == "mine"]
    checkpoints = cluster.rest.checkpoints(job.job_id)
    assert checkpoints.completed > 1
    assert checkpoints.last_bytes > 0
    assert checkpoints.last_path.startswith((state / "checkpoints").as_uri().replace("///", "/"))

    savepoint = cluster.rest.stop(job.job_id)
    assert pathlib.Path(savepoint.removeprefix("file:")).parent == cluster.directory / "savepoints"
    assert (result.wait_until_finish(), states(cluster, "mine")) == ("DONE", ["FINISHED"])
    windows = counting.windows(tmp_path)
    assert windows == {k: list(range(k * 10, (k + 1) * 10)) for k in range(len(windows))}
    assert min(first for first, at in counting.noted(tmp_path, "polls") if at > killed) > 0
    assert uploaded(cluster) == []


def test_a_job_that_is_cancelled_is_cancelled_on_the_cluster(flink_jars, tmp_path, monkeypatch):
    # The control of `uploaded`: of its jars this job stages the one that is not in the cache.
    pattern, name, _ = flink_java._UNSTAGED
    folder = f"/{jars.fetch_jars(flink_java.LOCK).name}/".encode()
    old, new = b"\x01\x00\x0egradle/wrapper", b"\x01" + flink_java._short(len(folder)) + folder
    monkeypatch.setattr(flink_java, "_UNSTAGED", (pattern, name, lambda code: flink_java._replaced(code, (old, new))))

    def wait(out):
        (out / "begun").touch()
        time.sleep(60)

    # Of its own: one jar in a class loader of its own breaks the TaskManager for those that come after it.
    with clusters.Cluster(tmp_path / "flink") as cluster:
        before = uploaded(cluster)
        root = beam.Pipeline(options=flink.options(flags(cluster, "waiting")))
        _ = root | beam.Create([tmp_path]) | beam.Map(wait)
        result = root.run()
        wait_for(lambda: (tmp_path / "begun").exists())
        assert len(uploaded(cluster)) > len(before)
        result.cancel()
        assert result.state == "CANCELLED"
        wait_for(lambda: states(cluster, "waiting") == ["CANCELED"], 15)
        assert flink_processes(os.getpid()) == set()
