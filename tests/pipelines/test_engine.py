"""A job on Flink: what [runner] chooses, and that it has the figures of the same job on the DirectRunner."""

import json
import shutil
import tempfile
import time
from typing import Any

import pytest

from pipelines import cli, config, engine, release, sections
from tests.drill import trial
from tests.pipelines import example
from tests.pipelines.test_topics import until

DAYS, N_EVENTS, N_MORE_ITEMS = 1, 5_000, 1000


@pytest.fixture
def job(tmp_path) -> config.Job:
    return example.load(example.write_job(tmp_path, []))


def options(job: config.Job, section: dict, *flags: str, **more: Any) -> dict:
    changed = job.model_copy(update={"runner": sections.RunnerSection(**section)})
    return engine.options(changed, flags, **more).get_all_options(retain_unknown_options=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_section_chooses_the_engine_of_releases_and_streams_have_flink(job, streaming):
    given = options(job, {"kind": "direct"}, streaming=streaming)
    assert given["runner"].endswith("flink.Runner" if streaming else "FnApiRunner")
    given = options(job, {"kind": "flink", "master": "flink.example:8081", "parallelism": 3}, streaming=streaming)
    assert given["runner"] == "runners.flink.Runner"
    assert (given["flink_master"], given["parallelism"], given["job_name"]) == ("flink.example:8081", 3, job.job.name)
    assert given["streaming"] is streaming
    assert given["number_of_execution_retries"] == "0"


def test_a_stream_makes_checkpoints_and_is_tried_again_if_it_was_asked_to(job, tmp_path):
    names = ("checkpointing_interval", "number_of_execution_retries", "flink_directory")
    given = options(job, {}, streaming=True, directory=tmp_path)
    assert [given[name] for name in names] == ["-1", "0", None]
    given = options(job, {"checkpoint_seconds": 2.5}, streaming=True, directory=tmp_path)
    assert [given[name] for name in names] == ["2500", None, str(tmp_path)]


@pytest.mark.parametrize(
    ("section", "kind", "payload"),
    [
        pytest.param({}, "LOOPBACK", None, id="loopback"),
        pytest.param({"environment": "process", "worker": "/w x"}, "PROCESS", {"command": "/w x"}, id="process"),
        pytest.param({"environment": "external", "worker": "h:1"}, "EXTERNAL", "h:1", id="external"),
    ],
)
def test_steps_in_python_run_where_the_section_says(job, section, kind, payload):
    given = options(job, {"kind": "flink", **section})
    assert given["environment_type"] == kind
    assert (json.loads(given["environment_config"]) if kind == "PROCESS" else given["environment_config"]) == payload


def test_the_section_says_where_staged_files_lie(job):
    section = {"kind": "flink", "environment": "external", "worker": "h:1"}
    assert options(job, section)["artifacts_dir"] is None
    assert options(job, {**section, "artifacts": "/shared"})["artifacts_dir"] == "/shared"
    assert options(job, {**section, "artifacts": "/shared"}, "--artifacts_dir=/other")["artifacts_dir"] == "/other"


def test_flags_win_over_the_section_and_one_that_beam_does_not_know_is_refused(job):
    given = options(job, {"kind": "flink", "parallelism": 3}, "--parallelism=2", "--flink_master=[auto]")
    assert (given["parallelism"], given["flink_master"]) == (2, "[auto]")
    with pytest.raises(config.JobFileError, match="--paralelism: neither"):
        options(job, {"kind": "flink"}, "--paralelism=2")
    for flag in ("--number_of_execution_retries=1", "--flink_conf_dir=/conf"):
        with pytest.raises(config.JobFileError, match="two draws of noise"):
            options(job, {"kind": "flink"}, flag)
    assert options(job, {"kind": "direct"}, "--direct_num_workers=1")["direct_num_workers"] == 1


def test_a_release_on_a_cluster_counts_what_one_on_the_direct_runner_counts(cluster, tmp_path):
    """Bounds bind; the noise of counts stays below one. The matrix is larger than what Flink could sort as a few records."""
    counts = {}
    for kind in ("direct", "flink"):
        directory = tmp_path / kind
        directory.mkdir()
        path = example.write_job(directory, [], epsilon=trial.EXACT)
        trial.write_events(directory, N_EVENTS, DAYS)
        with (directory / "items.csv").open("a") as items:
            items.writelines(f"x{number},nobody's,genre\n" for number in range(N_MORE_ITEMS))
        if kind == "flink":
            shutil.copy(tmp_path / "direct" / "pseudonym.key", directory)
        flags = [*trial.flags(DAYS), "--counts.max_partitions_contributed=3", "--counts.max_contributions_per_partition=1"]
        flags.append(f"--cooccurrence.max_items={N_MORE_ITEMS}")
        job = example.load(path, *flags, f"--runner.kind={kind}", f"--runner.master={cluster.master}")
        list(release.run_until(job, until(DAYS + 1, 1)))
        counts[kind] = trial.released(job)
    assert counts["flink"] == counts["direct"]
    everything = trial.counted(tmp_path / "direct" / "events.csv")
    assert 0 < sum(users for users, _ in counts["direct"].values()) < sum(users for users, _ in everything.values())


def test_a_cluster_that_does_not_answer_is_named_at_once(tmp_path):
    job = example.load(example.write_job(tmp_path, []), "--runner.kind=flink", "--runner.master=127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(engine.EngineError, match=r"^runner\.master: .*127\.0\.0\.1:9"):
        release.run(job)
    assert time.monotonic() - begun < 10


def test_a_folder_for_staged_files_that_can_not_be_made_is_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "artifacts").touch()
    flags = ["--runner.kind=flink", "--runner.environment=external", "--runner.worker=localhost:9"]
    path = example.write_job(tmp_path, [])
    example.load(path)
    assert cli.main(["release", str(path), *flags, f"--runner.artifacts={tmp_path / 'artifacts'}"]) == 3
    reason = f"no folder for what the job stages can be made in {tmp_path / 'artifacts'} (File exists)."
    assert capsys.readouterr().err.splitlines()[-1] == f"sottovoce: runner.master = '[local]': {reason}"
    assert list((tmp_path / "temporary").glob("sottovoce-*")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("java.io.IOException: no slots\nat a.b", "java.io.IOException: no slots", id="Flink"),
        pytest.param(
            "Error\nTraceback:\ndata.ledger.records.LedgerError: the ledger is away [while running 'Reserve']\n\tat a.b",
            "the ledger is away",
            id="a step of ours",
        ),
    ],
)
def test_what_made_flink_give_up_is_said_in_a_line(job, text, said):
    assert str(engine.failed(job, RuntimeError(text))) == f"runner.master = '[local]': {said}"
