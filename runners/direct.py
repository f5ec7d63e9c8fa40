"""The DirectRunner: one process, batch."""

import os
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from runners import beam_flags

_FN_API_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory() -> int:
    """Returns the bytes of memory that this process may use: the machine's, or its container's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return machine if limit == "max" else min(machine, int(limit))


def options(flags: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options: the given flags, and where they name no runner, the in-process FnApiRunner.

    `--runner=DirectRunner` would try Prism first, which Beam downloads.

    Raises:
        ValueError: a flag that Beam doesn't know (it would ignore it), or a word that belongs to no flag.
    """
    return beam_flags.parse(flags, [f"--runner={_FN_API_RUNNER}"])
