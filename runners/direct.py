"""The DirectRunner: one process, batch."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

_FN_API_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def options(flags: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options: the given flags, and where they name no runner, the in-process FnApiRunner.

    `--runner=DirectRunner` would try Prism first, which Beam downloads.
    """
    given = any(flag.split("=")[0] == "--runner" for flag in flags)
    return PipelineOptions([*([] if given else [f"--runner={_FN_API_RUNNER}"]), *flags])
