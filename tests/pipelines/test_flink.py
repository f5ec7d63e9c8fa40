"""The commands for a Flink cluster: each from start to end."""

import http.server
import re
import socket
import subprocess
import sys
import threading
import time

import apache_beam as beam
import pytest

from pipelines import cli
from runners import background, flink, flink_rest
from tests.runners import counting


def test_a_cluster_outlives_the_command_and_ends_when_told(flink_jars, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    [port] = background.choose_ports("127.0.0.1", None)
    words = [sys.executable, "-m", "pipelines.flink", "up", "--port", str(port), "--slots", "2"]
    try:
        up = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert up.stdout == f'kind = "flink"\nmaster = "127.0.0.1:{port}"\n'
        assert f"at 127.0.0.1:{port}, 2 slots" in up.stderr
        assert cli.main(["flink", "up"]) == 0
        assert capsys.readouterr().out == up.stdout
        assert cli.main(["flink", "status"]) == 0
        first, logs, jobs = capsys.readouterr().out.splitlines()
        assert first.endswith(f"at 127.0.0.1:{port}: 1 TaskManager(s), 2 of 2 slots free")
        assert (logs, jobs) == (f"logs: {tmp_path}/sottovoce/flink/*.log", "no jobs")
    finally:
        assert cli.main(["flink", "down"]) == 0
    assert "Flink is down" in capsys.readouterr().err
    assert cli.main(["flink", "down"]) == 0
    assert "no Flink is running" in capsys.readouterr().err


def test_a_job_is_told_of_and_cancelled_by_its_name(cluster, tmp_path, capsys):
    given = [f"--flink_master={cluster.master}", "--job_name=told"]
    root = beam.Pipeline(options=flink.options(given, streaming=True, checkpoint_seconds=1))
    counting.build(root, tmp_path)
    result = root.run()
    end = time.monotonic() + 60
    while not counting.noted(tmp_path, "polls"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert cli.main(["flink", "cancel", "untold", "--master", cluster.master]) == 2
    assert "no job that runs is called 'untold'. There are: told (" in capsys.readouterr().err
    assert cli.main(["flink", "status", "--master", cluster.master]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("told")]
    assert re.fullmatch(r"told  RUNNING  since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  [0-9a-f]{32}", line)
    assert cli.main(["flink", "cancel", "told", "--master", cluster.master]) == 0
    # Who waits for the job is told that it ended otherwise than they wanted.
    with pytest.raises(RuntimeError):
        result.wait_until_finish()
    assert result.state in ("FAILED", "CANCELLED")
    assert cli.main(["flink", "status", "--master", cluster.master]) == 0
    assert re.search(r"^told  CANCELED ", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize("words", [["status"], ["cancel", "any"]], ids=str)
@pytest.mark.parametrize(
    ("master", "reason"),
    [(["--master", "127.0.0.1:1"], "no Flink answers at 127.0.0.1:1"), ([], "there is no cluster in")],
    ids=["nothing there", "none made"],
)
def test_what_does_not_answer_is_one_line(capsys, tmp_path, monkeypatch, words, master, reason):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(["flink", *words, *master]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


def test_a_server_that_says_nothing_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(flink_rest, "_PATIENCE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        master = f"127.0.0.1:{silent.getsockname()[1]}"
        assert cli.main(["flink", "status", "--master", master]) == 3
    assert f"no Flink answers at {master} (timed out)" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["status"], ["cancel", "any"]], ids=str)
@pytest.mark.parametrize(
    ("code", "answer"),
    [
        (200, "[]"),
        (200, '{"jobs": [{"jid": 1}]}'),
        (200, '{"jobs": null}'),
        (404, '{"detail": "Not Found"}'),
        (400, '{"errors": {"a": 1}}'),
    ],
)
def test_a_server_that_is_no_flink_is_one_line(capsys, words, code, answer):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.handle_request).start()
        master = f"127.0.0.1:{other.server_port}"
        assert cli.main(["flink", *words, "--master", master]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert f"what answers at {master} is no Flink" in line


@pytest.mark.parametrize("count", ["0", "-1", "x"])
def test_a_cluster_of_nothing_is_refused(capsys, count):
    with pytest.raises(SystemExit):
        cli.main(["flink", "up", "--slots", count])
    assert "is not a number from 1" in capsys.readouterr().err
