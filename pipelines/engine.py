"""What a job's pipelines run on: Beam's options, by [runner] of the job file."""

import json
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import config
from runners import direct, flink

_NO_CHECKPOINTS = ["--checkpointing_interval=-1", "--number_of_execution_retries=0"]
"""The topic is what a stream begins again from, at the first window that is not released: Flink by itself would begin where the
stream began."""


def options(
    job: config.Job, beam_flags: Sequence[str], streaming: bool = False, directory: Path | None = None
) -> PipelineOptions:
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
        if not streaming:
            return flink.options([*flags, *beam_flags], section.parallelism)
        if section.checkpoint_seconds is None:
            return flink.options([*flags, *_NO_CHECKPOINTS, *beam_flags], section.parallelism, streaming)
        return flink.options([*flags, *beam_flags], section.parallelism, streaming, section.checkpoint_seconds, directory)
    except ValueError as error:
        raise config.JobFileError(str(error)) from error


def _environment(section: config.RunnerSection) -> list[str]:
    """Where steps in Python run."""
    if section.environment == "loopback":
        return []
    given = section.worker if section.environment == "external" else json.dumps({"command": section.worker})
    return [f"--environment_type={section.environment.upper()}", f"--environment_config={given}"]
