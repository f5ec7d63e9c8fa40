"""The job file: one validated model behind TOML, environment variables and flags.

Flags win over the environment (SOTTOVOCE_MODEL__RANK=64), that over the file. docs/job-file.md lists the keys.
"""

import datetime as dt
import heapq
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pydantic_settings

from data import errors, files, periods
from pipelines import sections
from transforms.ingest import pseudonym

_SHARES = ("selection", "counts", "cooccurrence")
_MAY_BE_SECRET = (pseudonym.KEY_VARIABLE, "SOTTOVOCE_PRIVACY", "SOTTOVOCE_PRIVACY__LEDGER")
"""Variables: the key, and the ledger's URL, which can have a password in it."""


class JobFileError(errors.BadRequestError):
    """Something in the job file, the environment or the flags is wrong; the message names key, value and rule."""


class Job(pydantic_settings.BaseSettings):
    """A whole job file."""

    model_config = pydantic_settings.SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="SOTTOVOCE_", env_nested_delimiter="__"
    )

    job: sections.JobSection
    source: sections.SourceSection
    kafka: sections.KafkaSection | None = None
    catalogue: sections.CatalogueSection | None = None
    privacy: sections.PrivacySection
    window: sections.WindowSection
    trending: sections.TrendingSection | None = None
    selection: sections.SelectionSection = sections.SelectionSection()
    counts: sections.CountsSection = sections.CountsSection()
    cooccurrence: sections.CooccurrenceSection = sections.CooccurrenceSection()
    model: sections.ModelSection = sections.ModelSection()
    diversity: sections.DiversitySection = sections.DiversitySection()
    evaluation: sections.EvaluationSection = sections.EvaluationSection()
    publish: sections.PublishSection = sections.PublishSection()
    runner: sections.RunnerSection = sections.RunnerSection()
    alerts: sections.AlertsSection = sections.AlertsSection()

    @property
    def settling(self) -> dt.timedelta:
        """How long after a window's end and slack it is read: until then the broker may yet give an event an earlier time."""
        return dt.timedelta(seconds=0 if self.kafka is None else self.kafka.settle_seconds)

    @property
    def is_trending(self) -> bool:
        """Whether this is the part of a job that releases counts of short windows alone."""
        return self.job.name.endswith(sections.TRENDING)

    @property
    def is_evaluation(self) -> bool:
        """Whether this is the part of a job that releases an evaluation of its models."""
        return self.job.name.endswith(sections.EVALUATION)

    @property
    def holds_out(self) -> bool:
        """Whether users are kept from what models are trained on, so that an evaluation can ask them."""
        return self.evaluation.budget_share > 0

    def evaluation_of(self, start: dt.datetime, end: dt.datetime) -> "Job":
        """The part of the job that releases an evaluation on the events of a window."""
        part = {
            "job": self.job.model_copy(update={"name": self.job.name + sections.EVALUATION}),
            "window": self.window.model_copy(update={"start": start, "end": end}),
            "trending": None,
        }
        return self.model_copy(update=part)

    @property
    def parts(self) -> "list[Job]":
        """The job itself and, where there is a [trending], its short windows: each is released and charged by itself."""
        short = self.trending
        if short is None:
            return [self]
        window = self.window.model_copy(
            update={
                **{name: getattr(short, name) for name in sections.SizedWindows.model_fields},
                "start": self._first_short(short),
            }
        )
        bounds = ("max_partitions_contributed", "max_contributions_per_partition")
        part = {
            "job": self.job.model_copy(update={"name": self.job.name + sections.TRENDING}),
            "window": window,
            "trending": None,
            "evaluation": self.evaluation.model_copy(update={"budget_share": 0.0}),
            "counts": self.counts.model_copy(update={"budget_share": 1.0, **{name: getattr(short, name) for name in bounds}}),
            # The other limits are of what the job reads, which is told once.
            "alerts": sections.AlertsSection(
                max_delay_seconds=self.alerts.max_delay_seconds, min_windows_left=self.alerts.min_windows_left
            ),
        }
        return [self, self.model_copy(update=part)]

    def windows(self, until: dt.datetime, after: dt.datetime | None = None) -> Iterator[tuple[int, int]]:
        """Yields the windows that are over at a time, slack included, in the order in which they end.

        Args:
            until: the time.
            after: only those that end after this one.

        Yields:
            The place in `parts` of the part that a window is of, and its number. Of two that end together the job's own is
            first.
        """

        def ends(place: int, window: sections.WindowSection) -> Iterator[tuple[dt.datetime, int, int]]:
            first = 0 if after is None else window.count(after)
            return ((window.bounds(number)[1], place, number) for number in range(first, window.closed_count(until)))

        ordered = heapq.merge(*(ends(place, part.window) for place, part in enumerate(self.parts)))
        return ((place, number) for _, place, number in ordered)

    def _first_short(self, short: sections.TrendingSection) -> dt.datetime:
        """When the first short window starts. Without a catalogue they count items that the job's own windows made known."""
        start = short.start or self.window.start
        known = self.window.start + (self.window.duration if self.catalogue is None else dt.timedelta(0))
        return start + max(0, -((start - known) // short.step)) * short.step

    @pydantic.model_validator(mode="after")
    def _broker_of_the_topic(self) -> "Job":
        if (self.source.kind == "kafka") != (self.kafka is not None):
            raise ValueError('the section [kafka] is for source.kind = "kafka", which needs it')
        return self

    @pydantic.model_validator(mode="after")
    def _broker_of_the_catalogue(self) -> "Job":
        if self.catalogue is not None and self.catalogue.topic is not None and self.kafka is None:
            raise ValueError(
                'catalogue.topic: is read from the broker of [kafka], which is for source.kind = "kafka"; give path'
            )
        return self

    @pydantic.model_validator(mode="after")
    def _topics_apart(self) -> "Job":
        kafka, catalogue = self.kafka, self.catalogue
        if kafka is None:
            return self
        named = {f"kafka.{name}": getattr(kafka, name) for name in ("consent", "dead_letters", "late", "recommendations")}
        named |= {"source.topic": self.source.topic, "catalogue.topic": None if catalogue is None else catalogue.topic}
        for topic in filter(None, named.values()):
            keys = [key for key, given in named.items() if given == topic]
            if len(keys) > 1:
                raise ValueError(f"{' and '.join(keys)} are both {topic!r}: each needs a topic of its own")
        return self

    @pydantic.model_validator(mode="after")
    def _diversity_of_the_catalogue(self) -> "Job":
        known = [] if self.catalogue is None else self.catalogue.features
        asked = [("features", name) for name in self.diversity.features or ()]
        if self.diversity.category_feature is not None:
            asked.append(("category_feature", self.diversity.category_feature))
        for key, name in asked:
            if name not in known:
                raise ValueError(f"diversity.{key} = {name!r} is not among catalogue.features = {known}")
        return self

    @pydantic.model_validator(mode="after")
    def _lag_of_a_topic(self) -> "Job":
        if self.alerts.max_lag is not None and self.kafka is None:
            raise ValueError('alerts.max_lag: files have no lag; it is for source.kind = "kafka"')
        return self

    @pydantic.model_validator(mode="after")
    def _windows_shorter_than_the_jobs(self) -> "Job":
        short = self.trending
        if short is None:
            return self
        if self.window.size == "all" or sections.time_of(short.size) >= self.window.duration:
            raise ValueError(
                f"trending.size = {short.size!r} must be shorter than window.size = {self.window.size!r}, the job's own windows"
            )
        if (first := self._first_short(short)) >= self.window.end:
            raise ValueError(
                f"trending: the first short window would start at {first}, and window.end is {self.window.end} (without a "
                "[catalogue] none starts before the job's first own window is over). Give an earlier trending.start, a "
                "catalogue, or a later window.end"
            )
        if self.window.max_windows_contributed and short.max_windows_contributed:
            shares = self.window.budget_share + short.budget_share
            if shares > 1:
                raise ValueError(f"window.budget_share + trending.budget_share = {shares:g} must be at most 1")
        return self

    @pydantic.model_validator(mode="after")
    def _window_within_period(self) -> "Job":
        for name, window in self._sections():
            if window.size == "all":
                periods.names(self.privacy.period, window.start, window.end)
            elif window.duration > periods.SHORTEST[self.privacy.period]:
                raise ValueError(
                    f"{name}.size = {window.size!r} is longer than a period ({self.privacy.period}): nobody's loss in it "
                    "would be bounded by one budget. Take a smaller size or a longer period"
                )
        return self

    def _sections(self) -> Iterator[tuple[str, sections.WindowSection]]:
        """The windows of each part, by the name of their section."""
        return ((name, part.window) for name, part in zip(("window", "trending"), self.parts, strict=False))

    @pydantic.model_validator(mode="after")
    def _ledger_outside_the_store(self) -> "Job":
        ledger = (self.privacy.ledger or "").partition("sqlite:///")[2]
        for key, path in (("ledger", ledger), ("book", self.privacy.book)):
            if path and _lies_in(path, self.job.store):
                raise ValueError(
                    f"privacy.{key} = {str(path)!r} lies in job.store = {str(self.job.store)!r}: deleting the store would "
                    "bring its budget back"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _paths_that_workers_find(self) -> "Job":
        if self.runner.environment == "loopback":
            return self
        kafka = self.kafka
        named: list[tuple[str, files.Name | None]] = [
            ("job.store", self.job.store),
            ("privacy.ledger", (self.privacy.ledger or "").partition("sqlite:///")[2]),
            ("privacy.book", self.privacy.book),
            ("runner.artifacts", self.runner.artifacts),
            ("kafka.ca_file", kafka.ca_file if kafka else None),
            ("kafka.password_file", kafka.password_file if kafka else None),
            *(("source.paths", path) for path in self.source.paths),
        ]
        for key, path in named:
            if path and not files.is_url(path) and not Path(path).is_absolute():
                raise ValueError(
                    f"{key} = {str(path)!r} with runner.environment = {self.runner.environment!r}: workers have a working "
                    "directory of their own. Give the path from the root on"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _one_book_a_window(self) -> "Job":
        booked = [(name, window) for name, window in self._sections() if window.max_windows_contributed]
        for name, window in booked:
            if window.step < window.duration and self.privacy.period != periods.LIFETIME:
                raise ValueError(
                    f"{name}.max_windows_contributed: sliding windows cross from one period ({self.privacy.period}) into the "
                    'next, and each period has a book of its own. Take privacy.period = "lifetime", or windows that follow one '
                    "another"
                )
            if not periods.divides(self.privacy.period, window.start, window.duration):
                raise ValueError(
                    f"{name}.max_windows_contributed: windows of {window.size!r} from {window.start} on don't each lie in one "
                    f"period ({self.privacy.period}), and each period has a book of its own. Take a size that divides it, from "
                    "a start that fits"
                )
        if booked and self.runner.buckets:
            raise ValueError("runner.buckets: can't be chosen with max_windows_contributed: the book has its own number")
        if booked and self.privacy.book is None and self.privacy.ledger and not self.privacy.ledger.startswith("sqlite:///"):
            raise ValueError("privacy.book: must name a directory that all hosts share, where the ledger is not a SQLite file")
        return self

    @pydantic.model_validator(mode="after")
    def _no_book_of_evaluations(self) -> "Job":
        if self.holds_out and self.window.max_windows_contributed:
            raise ValueError(
                "evaluation.budget_share: not with window.max_windows_contributed: the contribution book lets a user into a "
                "window once, for its release alone. Take windows without max_windows_contributed, or no evaluation"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _whole_budget(self) -> "Job":
        shares = {name: getattr(self, name).budget_share for name in _SHARES}
        if self.holds_out:
            shares["evaluation"] = self.evaluation.budget_share
        if abs(sum(shares.values()) - 1) > 1e-9:
            given = " + ".join(f"{name}.budget_share {share}" for name, share in shares.items())
            raise ValueError(f"budget shares must add up to 1, not {given} = {sum(shares.values()):.6g}")
        return self


def _lies_in(place: files.Name, directory: files.Name) -> bool:
    if files.is_url(place) or files.is_url(directory):
        return files.join(place, "").startswith(files.join(directory, ""))
    return Path(place).resolve().is_relative_to(Path(directory).resolve())


def changed(job: Job, changes: Mapping[str, Any]) -> Job:
    """Returns the job with other values of some keys, named as in the job file: section.key."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return job.model_copy(
        update={section: getattr(job, section).model_copy(update=values) for section, values in sections.items()}
    )


def load(path: Path, flags: Sequence[str] = ()) -> tuple[Job, list[str]]:
    """Reads a job file, with the environment and `--section.key value` flags over it.

    Returns:
        The job, and the flags that are not ours (Beam's).

    Raises:
        JobFileError: a line for each thing that is wrong.
    """
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobFileError(f"{path}: can't be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobFileError(f"{path}: is not TOML: {error}.") from error
    given, others = _split_flags(flags)
    _check_environment()

    class JobOf(Job):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[pydantic_settings.BaseSettings],
            init_settings: pydantic_settings.PydanticBaseSettingsSource,
            env_settings: pydantic_settings.PydanticBaseSettingsSource,
            dotenv_settings: pydantic_settings.PydanticBaseSettingsSource,
            file_secret_settings: pydantic_settings.PydanticBaseSettingsSource,
        ) -> tuple[pydantic_settings.PydanticBaseSettingsSource, ...]:
            file = pydantic_settings.InitSettingsSource(settings_cls, init_kwargs=written)
            return init_settings, env_settings, file

    try:
        return JobOf(**given), others
    except (pydantic.ValidationError, pydantic_settings.SettingsError) as error:
        raise JobFileError(f"{path}:\n" + "\n".join(_explain(error))) from error


def _split_flags(flags: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Takes `--section.key value` and `--section.key=value` out; lists, tables and quoted text are TOML, the rest is plain."""
    ours: dict[str, Any] = {}
    others: list[str] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        section, dot, key = name.partition(".")
        if not (flag.startswith("--") and dot):
            others.append(flag)
            continue
        if not key or section not in Job.model_fields:
            raise JobFileError(f"--{name}: is not a known key; the sections are {', '.join(Job.model_fields)}.")
        if not equals:
            if not rest:
                raise JobFileError(f"--{name}: needs a value.")
            value = rest.pop(0)
            if value.startswith("--"):
                raise JobFileError(f"--{name}: needs a value, not the flag {value}.")
        *tables, key = name.split(".")
        table = ours
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise JobFileError(f"--{name}: {part} has a value of its own already.")
        table[key] = _value(value)
    return ours, others


def _value(text: str) -> Any:
    if not text.startswith(("[", "{", '"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _shown(given: Any) -> str:
    """A value as a job file would have it: flags and variables give numbers as text."""
    if not isinstance(given, str):
        return repr(given)
    try:
        float(given)
    except ValueError:
        return repr(given)
    return given


def _check_environment() -> None:
    """A misspelt variable must not be passed over: it may have been meant to lower the budget."""
    prefix, delimiter = Job.model_config["env_prefix"], Job.model_config["env_nested_delimiter"]
    for name in os.environ:
        section = name.removeprefix(prefix).partition(str(delimiter))[0].lower()
        if name.startswith(prefix) and name != pseudonym.KEY_VARIABLE and section not in Job.model_fields:
            raise JobFileError(
                f"{name}: is not a known key. Variables are {prefix}SECTION{delimiter}KEY; the sections are "
                f"{', '.join(Job.model_fields)}."
            )


def variables() -> tuple[dict[str, str], list[str]]:
    """Returns the environment's variables that are ours, and of those that may be secret the names alone."""
    ours = {name: value for name, value in sorted(os.environ.items()) if name.upper().startswith("SOTTOVOCE_")}
    secrets = [name for name in ours if name.upper() in _MAY_BE_SECRET]
    return {name: value for name, value in ours.items() if name not in secrets}, secrets


def _explain(error: pydantic.ValidationError | pydantic_settings.SettingsError) -> list[str]:
    if not isinstance(error, pydantic.ValidationError):
        prefix = Job.model_config["env_prefix"]
        names = [name for name in os.environ if name.startswith(prefix) and name != pseudonym.KEY_VARIABLE]
        return [f"  {', '.join(names)}: one of these variables is not JSON, which tables and lists are there ({error})."]
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "job file"
        rule = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            lines.append(f"  {key}: is required but not given.")
        elif problem["type"] == "extra_forbidden":
            # Without its value: it may be a secret in the wrong place.
            lines.append(f"  {key}: is not a known key.")
        elif isinstance(problem["input"], dict | pydantic.BaseModel) and problem["type"] == "value_error":
            lines.append(f"  {key}: {rule}.")
        else:
            lines.append(f"  {key} = {_shown(problem['input'])}: {rule}.")
    return lines
