"""Flags that become Beam's options: a default gives way to what the user gave, and a flag that nobody knows is refused."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from runners import inspection


def parse(flags: Sequence[str], defaults: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options: the given flags, and those defaults whose names are not among them.

    Args:
        flags: as the user gave them: `--name=value`, `--name value` or `--name`.
        defaults: `--name=value` or `--name`.

    Raises:
        ValueError: a flag that Beam doesn't know (it would ignore it), or a word that belongs to no flag.
    """
    inspection.remember()
    given = {flag.split("=")[0] for flag in flags}
    options = PipelineOptions([*(default for default in defaults if default.split("=")[0] not in given), *flags])
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
