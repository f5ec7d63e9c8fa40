"""The DirectRunner: one process, batch."""

import os
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

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
    given = any(flag.split("=")[0] == "--runner" for flag in flags)
    options = PipelineOptions([*([] if given else [f"--runner={_FN_API_RUNNER}"]), *flags])
    known = options.get_all_options()
    unknown = [f"--{name}" for name in options.get_all_options(retain_unknown_options=True) if name not in known]
    # A word is a flag's value only right after the flag.
    words = [
        flag
        for before, flag in zip(["", *flags], flags, strict=False)
        if not flag.startswith("-") and (not before.startswith("--") or "=" in before)
    ]
    if unknown or words:
        raise ValueError(f"{' '.join([*unknown, *words])}: neither a --section.key of the job file nor a flag of Beam's.")
    return options
