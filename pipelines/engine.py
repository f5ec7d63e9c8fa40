"""What a job's pipelines run on: Beam's options, by [runner] of the job file."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options import pipeline_options

from data import errors
from pipelines import config, sections
from runners import direct, flink, flink_rest

_RETRIES = "--number_of_execution_retries"
_TRY_AGAIN = frozenset({_RETRIES, "--flink_conf_dir"})
"""Flags that would let Flink try a job again: a restart strategy in a directory of settings wins over the number of retries."""
_NO_CHECKPOINTS = ["--checkpointing_interval=-1", f"{_RETRIES}=0"]
"""The topic is what a stream begins again from, at the first window that is not released: Flink by itself would begin where the
stream began."""

_REASON = re.compile(r"^(?:data|models|pipelines|transforms)[\w.]*Error: (.*?)(?: \[while running.*)?$", re.MULTILINE)
"""What a step of ours says in the text of all that Java and Python had on their stacks."""


class EngineError(errors.BadInputError):
    """Flink can't be used, or it gave up a pipeline."""


def pipeline(
    job: config.Job, beam_flags: Sequence[str], streaming: bool = False, directory: Path | None = None
) -> beam.Pipeline:
    """Returns an empty pipeline with `options`.

    Raises:
        EngineError: there is a Flink cluster to run it, and it doesn't answer.
        config.JobFileError: as `options`.
    """
    given = options(job, beam_flags, streaming, directory)
    master = given.view_as(pipeline_options.FlinkRunnerOptions).flink_master
    if (streaming or job.runner.kind == "flink") and not master.startswith("["):
        try:
            flink_rest.Flink(master).overview()
        except flink_rest.FlinkError as error:
            raise EngineError(f"runner.master: {error}") from error
    return beam.Pipeline(options=given)


def failed(job: config.Job, error: RuntimeError) -> EngineError:
    """Returns what to say when a pipeline could not be started on Flink, or failed there."""
    text = str(error)
    reasons = _REASON.findall(text)
    return EngineError(f"runner.master = {job.runner.master!r}: {reasons[-1] if reasons else text.splitlines()[0]}")


def options(
    job: config.Job, beam_flags: Sequence[str], streaming: bool = False, directory: Path | None = None
) -> pipeline_options.PipelineOptions:
    """Returns Beam's options; flags that the user gave win. A stream runs on Flink, whatever `runner.kind` says.

    Args:
        directory: for the checkpoints of a stream that makes them (`runner.checkpoint_seconds`).

    Raises:
        config.JobFileError: a flag that Beam doesn't know.
    """
    section = job.runner
    try:
        if section.kind == "direct" and not streaming:
            return direct.options(beam_flags)
        flags = [f"--job_name={job.job.name}", f"--flink_master={section.master}", *_environment(section)]
        if streaming:
            return _stream_options(section, flags, beam_flags, directory)
        if refused := [name for flag in beam_flags if (name := flag.split("=")[0]) in _TRY_AGAIN]:
            raise ValueError(
                f"{refused[0]}: Flink must not try a release again: parts of two draws of noise would be published."
            )
        return flink.options([*flags, f"{_RETRIES}=0", *beam_flags], section.parallelism)
    except ValueError as error:
        raise config.JobFileError(str(error)) from error


def _stream_options(
    section: sections.RunnerSection, flags: list[str], beam_flags: Sequence[str], directory: Path | None
) -> pipeline_options.PipelineOptions:
    if section.checkpoint_seconds is None:
        return flink.options([*flags, *_NO_CHECKPOINTS, *beam_flags], section.parallelism, streaming=True)
    return flink.options([*flags, *beam_flags], section.parallelism, True, section.checkpoint_seconds, directory)


def _environment(section: sections.RunnerSection) -> list[str]:
    """Where steps in Python run, and where what they need lies meanwhile."""
    if section.environment == "loopback":
        return []
    given = section.worker if section.environment == "external" else json.dumps({"command": section.worker})
    artifacts = [] if section.artifacts is None else [f"--artifacts_dir={section.artifacts}"]
    return [f"--environment_type={section.environment.upper()}", f"--environment_config={given}", *artifacts]
