"""The job file: one validated model behind TOML, environment variables and flags.

Flags win over the environment (SOTTOVOCE_MODEL__RANK=64), that over the file. docs/job-file.md lists the keys.
"""

import datetime as dt
import heapq
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import pydantic_settings
from pydantic import Field

from data import errors, files, periods
from models import rerank
from transforms import bounding
from transforms.ingest import decode, formats, kafka_client, pseudonym, stream
from transforms.privacy.filter import Composition
from transforms.privacy.noise import Source
from transforms.release import cooccurrence, reference

Share = Annotated[float, Field(gt=0, lt=1)]


def _no_truth_value(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError("must be a number")
    return given


_DURATION = r"[1-9]\d{0,4}[smhdw]"
Duration = Annotated[str, Field(pattern=f"^{_DURATION}$")]


def _time_of(duration: str) -> dt.timedelta:
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[duration[-1]]
    return dt.timedelta(**{unit: int(duration[:-1])})


def _as_place(given: Any) -> Any:
    if not isinstance(given, str | Path):
        raise ValueError("must be a path or a URL")
    return given if isinstance(given, str) and files.is_url(given) else Path(given)


Place = Annotated[Path | str, pydantic.BeforeValidator(_as_place)]
"""A path, or an object store's URL: a text, as a Path would lose a slash."""


def _lies_in(place: files.Name, directory: files.Name) -> bool:
    if files.is_url(place) or files.is_url(directory):
        return files.join(place, "").startswith(files.join(directory, ""))
    return Path(place).resolve().is_relative_to(Path(directory).resolve())


Positive = Annotated[int, Field(ge=1), pydantic.BeforeValidator(_no_truth_value)]

_SHARES = ("selection", "counts", "cooccurrence")

TRENDING = "/trending"
"""What a job's name ends with in the ledger where the job's short windows are meant."""

LOCAL_FLINK = "[local]"
"""The master of a Flink that starts and ends with a job."""

_MAY_BE_SECRET = (pseudonym.KEY_VARIABLE, "SOTTOVOCE_PRIVACY", "SOTTOVOCE_PRIVACY__LEDGER")
"""Variables: the key, and the ledger's URL, which can have a password in it."""


class JobFileError(errors.BadRequestError):
    """Something in the job file, the environment or the flags is wrong; the message names key, value and rule."""


def utc(time: dt.datetime) -> dt.datetime:
    """The time in UTC, which it is in where it names no zone."""
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JobSection(_Section):
    """[job]: its name, the data set whose users' budget it spends, and where its results go."""

    name: str = Field(min_length=1, max_length=200 - len(TRENDING))
    data_set: str = Field(min_length=1, max_length=200)
    store: Place

    @pydantic.field_validator("name")
    @classmethod
    def _not_that_of_short_windows(cls, name: str) -> str:
        if name.endswith(TRENDING):
            raise ValueError(f"must not end with {TRENDING!r}: the ledger calls a job's short windows so")
        return name

    @property
    def whole(self) -> str:
        """The name of the job that this one is a part of, or its own."""
        return self.name.removesuffix(TRENDING)


class SourceSection(_Section):
    """[source]: where events come from and how a row becomes one (transforms.ingest.decode.EventRules)."""

    kind: Literal["parquet", "csv", "jsonl", "kafka"]
    paths: list[str] = []
    topic: str | None = Field(None, min_length=1, max_length=249)
    format: formats.Kind = "json"
    schema_file: str | None = None
    schemas: dict[str, str] = {}
    message: str | None = None
    columns: dict[str, str] = Field({}, validate_default=True)
    context: dict[str, str] = {}
    event_types: dict[str, float] = Field(min_length=1)
    time_unit: Literal["s", "ms", "us"] | None = None
    min_value: float | None = None
    weigh_by_value: bool = False
    max_skew_seconds: float = Field(300.0, ge=0)
    max_malformed_share: float = Field(0.01, ge=0, le=1)

    @pydantic.field_validator("event_types")
    @classmethod
    def _finite_weights(cls, event_types: dict[str, float]) -> dict[str, float]:
        for name, weight in event_types.items():
            if not 0 < weight <= decode.MAX_VALUE:
                raise ValueError(f"the weight of {name!r} must be in (0, 1e9], not {weight}")
        return event_types

    @pydantic.model_validator(mode="after")
    def _files_or_a_topic(self) -> "SourceSection":
        if (self.kind == "kafka") != (self.topic is not None) or (self.kind == "kafka") == bool(self.paths):
            raise ValueError('kind = "kafka" needs topic and no paths; the other kinds need paths and no topic')
        if self.kind == "kafka" and "arrival_time" in self.columns:
            raise ValueError("columns maps arrival_time, but a message arrives when the broker says so")
        return self

    @pydantic.model_validator(mode="after")
    def _enough_columns(self) -> "SourceSection":
        if "event_type" not in self.columns and len(self.event_types) != 1:
            raise ValueError("event_types must name just one type where columns maps no event_type")
        if "value" not in self.columns and (self.min_value is not None or self.weigh_by_value):
            raise ValueError("min_value and weigh_by_value need columns to map value")
        return self

    @pydantic.field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = ("event_id", "privacy_id", "item_id", "event_type", "value", "event_time", "arrival_time")
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise ValueError(f"maps {', '.join(unknown)}, but an event has {', '.join(known)}")
        # A source that names its columns as we do needs no line for them.
        return {"privacy_id": "privacy_id", "item_id": "item_id", "event_time": "event_time", **columns}


class CatalogueSection(_Section):
    """[catalogue]: the public item table. With it partitions are public, without it they are selected privately."""

    path: str | None = None
    topic: str | None = Field(None, min_length=1, max_length=249)
    columns: dict[str, str] = {}
    features: list[str] = []
    kinds: dict[str, Literal["categorical", "multi", "text", "number"]] = {}
    multi_separator: str = Field("|", min_length=1)

    @pydantic.model_validator(mode="after")
    def _a_file_or_a_topic(self) -> "CatalogueSection":
        if (self.path is None) == (self.topic is None):
            raise ValueError("needs path, a file, or topic, one of them")
        return self


class PrivacySection(_Section):
    """[privacy]: what a release may cost each user, and who the users are."""

    total_epsilon: float = Field(gt=0)
    total_delta: float = Field(gt=0, lt=1)
    unit: Literal["user"] = "user"
    period: periods.Period = "lifetime"
    composition: Composition = "gaussian"
    ledger: str | None = None
    book: Place | None = None
    expected_users: Annotated[Positive, Field(le=2**26)]
    allow_large_delta: bool = False
    key_file: Path | None = None
    opt_out: Path | None = None

    @pydantic.model_validator(mode="after")
    def _no_key_in_the_file(self) -> "PrivacySection":
        if self.key_file and re.fullmatch("[0-9a-fA-F]{32,}", self.key_file.name):
            raise ValueError("key_file must name a file that holds the key, not be the key")
        return self

    @pydantic.model_validator(mode="after")
    def _small_delta(self) -> "PrivacySection":
        if self.total_delta >= 1 / self.expected_users and not self.allow_large_delta:
            raise ValueError(
                f"total_delta = {self.total_delta} must be below 1/expected_users = {1 / self.expected_users:.3g}: a larger "
                "one allows a release that shows one user whole (allow_large_delta = true takes that)"
            )
        return self


class _Windows(_Section):
    """Windows of one length, from a start on: how long, how far apart, and what each may cost."""

    size: str
    every: Duration | None = None
    budget_share: float = Field(1.0, gt=0, le=1)
    max_windows_contributed: Positive | None = None
    min_separation: Positive = 1

    @property
    def step(self) -> dt.timedelta:
        """From the start of a window to that of the next."""
        return _time_of(self.every or self.size)

    @pydantic.model_validator(mode="after")
    def _windows_that_fit(self) -> Self:
        if self.every is not None and (self.size == "all" or self.step > _time_of(self.size)):
            raise ValueError(f"every = {self.every!r} must not be longer than size = {self.size!r}: some events had no window")
        if self.max_windows_contributed and self.size == "all":
            raise ValueError('max_windows_contributed is for windows that follow one another; size = "all" is one window')
        if self.min_separation > 1 and not self.max_windows_contributed:
            raise ValueError("min_separation needs max_windows_contributed")
        return self


def _no_number(given: Any) -> Any:
    if given is not None and not isinstance(given, dt.date) and not re.match(r"\d{4}-", str(given)):
        raise ValueError("must be a date or time, such as 2025-12-31 or 2025-12-31T08:00:00Z")
    return given


Time = Annotated[dt.datetime, pydantic.BeforeValidator(_no_number), pydantic.AfterValidator(utc)]


class WindowSection(_Windows):
    """[window]: which events one release reads: those in [start, end), or in each window of `size` between them, in UTC."""

    size: str = "all"
    start: Time
    end: Time
    slack_seconds: float = Field(0.0, ge=0)

    @pydantic.field_validator("size")
    @classmethod
    def _all_or_duration(cls, size: str) -> str:
        if size != "all" and not re.fullmatch(_DURATION, size):
            raise ValueError('must be "all" or a number of seconds, minutes, hours, days or weeks, such as "10s", "1h", "7d"')
        return size

    @property
    def duration(self) -> dt.timedelta:
        """How long a window is."""
        return self.end - self.start if self.size == "all" else _time_of(self.size)

    @property
    def step(self) -> dt.timedelta:
        """From the start of a window to that of the next."""
        return self.duration if self.size == "all" else super().step

    @property
    def slack(self) -> dt.timedelta:
        """How much later than its window's end an event may arrive."""
        return dt.timedelta(seconds=self.slack_seconds)

    @property
    def windows(self) -> stream.Windows:
        """All of them, told by this section alone."""
        return stream.Windows(self.start, self.duration, self.step)

    def closed_count(self, now: dt.datetime) -> int:
        """How many windows are over at `now`, slack included."""
        return self.count(min(self.end, now - self.slack))

    def count(self, time: dt.datetime) -> int:
        """How many windows end by a time, whether the job goes on until then or not."""
        return self.windows.count(time)

    def bounds(self, number: int) -> tuple[dt.datetime, dt.datetime]:
        """Start and end of a window, counted from 0."""
        end = self.windows.end(number)
        return end - self.duration, end

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"start = {self.start} must be before end = {self.end}")
        return self


class TrendingSection(_Windows):
    """[trending]: counts of short windows beside the job's own: what they cost, how they are bounded, how many are shown."""

    size: Duration
    start: Time | None = None
    budget_share: float = Field(gt=0, le=1)
    max_partitions_contributed: Positive = 10
    max_contributions_per_partition: Positive = 5
    keep_windows: Positive = 24


class SelectionSection(_Section):
    """[selection]: the noisy item scores, and without a catalogue the choice of what may appear."""

    budget_share: Share = 0.08
    max_partitions_contributed: Annotated[Positive, Field(le=1_000_000)] = 500
    delta_share: Share = 0.5


class CountsSection(_Section):
    """[counts]: users and events by item and event type. engine "reference" is PipelineDP's own, event by event."""

    budget_share: Share = 0.12
    max_partitions_contributed: Positive = 50
    max_contributions_per_partition: Positive = 5
    engine: Literal["columnar", "reference"] = "columnar"


class CooccurrenceSection(_Section):
    """[cooccurrence]: the item-item matrix. engine "reference" is PipelineDP's own VECTOR_SUM, for some hundred items."""

    budget_share: Share = 0.8
    max_items: int | Literal["auto"] = "auto"
    engine: Literal["columnar", "reference"] = "columnar"
    noise: Source = "chacha"

    @pydantic.field_validator("max_items", mode="wrap")
    @classmethod
    def _auto_or_number(cls, given: Any, validate: pydantic.ValidatorFunctionWrapHandler) -> int | Literal["auto"]:
        try:
            max_items: int | Literal["auto"] = validate(given)
        except pydantic.ValidationError:
            max_items = 0
        if max_items != "auto" and not 1 <= max_items <= cooccurrence.MAX_ITEMS:
            raise ValueError(f'must be "auto" or in 1..{cooccurrence.MAX_ITEMS}: larger matrices were not tried')
        return max_items

    @pydantic.model_validator(mode="after")
    def _small_reference(self) -> "CooccurrenceSection":
        if self.engine == "reference" and (self.max_items == "auto" or self.max_items > reference.MAX_ITEMS):
            raise ValueError(
                f'engine = "reference" needs max_items in 1..{reference.MAX_ITEMS}, not {self.max_items!r}: it takes a dense '
                "vector a user"
            )
        return self


class ModelSection(_Section):
    """[model]: the hybrid model trained on the released tables, on each release or when the last one is so old."""

    retrain: Duration | None = None
    rank: Positive = 128
    epochs: int = Field(1, ge=0)
    learning_rate: float = Field(0.0003, gt=0, le=1)
    neighbours: Positive = 50
    top_k: Positive = 20
    seed: int = 0

    @property
    def lasts(self) -> dt.timedelta:
        """How old a model may get before a new release trains another."""
        return dt.timedelta(0) if self.retrain is None else _time_of(self.retrain)


class DiversitySection(_Section):
    """[diversity]: whether and how recommendations are re-ranked, so that what is in one list is less alike."""

    method: Literal["none", "mmr", "dpp"] = "none"
    trade_off: float = Field(0.3, ge=0, le=1)
    max_per_category: Positive | None = None
    category_feature: str | None = None
    serendipity: bool = False
    candidates: Positive = 200

    @property
    def settings(self) -> rerank.Settings | None:
        """For `models.rerank`; None: the ranking stays as it is."""
        if self.method == "none":
            return None
        return rerank.Settings(**self.model_dump())

    @pydantic.model_validator(mode="after")
    def _cap_of_categories(self) -> Self:
        if self.max_per_category is not None and self.category_feature is None:
            raise ValueError("max_per_category needs category_feature, the feature of the catalogue that says the category")
        return self


class KafkaSection(_Section):
    """[kafka]: the broker, who asks it, and the topics beside the events' own."""

    bootstrap: str = Field(min_length=1)
    security: kafka_client.Security = "plaintext"
    ca_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    group: str | None = Field(None, min_length=1)
    consent: str | None = Field(None, min_length=1, max_length=249)
    dead_letters: str | None = Field(None, min_length=1, max_length=249)
    late: str | None = Field(None, min_length=1, max_length=249)
    recommendations: str | None = Field(None, min_length=1, max_length=249)
    partitions: Positive = 3
    retention: Duration = "14d"
    settle_seconds: float = Field(5.0, ge=0)
    allow_create_time: bool = False

    @property
    def retention_time(self) -> dt.timedelta:
        """How long events and dead letters are kept."""
        return _time_of(self.retention)

    @property
    def connection(self) -> kafka_client.Connection:
        """How the broker is reached."""
        return kafka_client.Connection(self.bootstrap, self.security, self.ca_file, self.username, self.password_file)

    @pydantic.model_validator(mode="after")
    def _whole_connection(self) -> "KafkaSection":
        try:
            _ = self.connection
        except kafka_client.KafkaError as error:
            raise ValueError(str(error)) from error
        return self


class EvaluationSection(_Section):
    """[evaluation]: whose data the events are, and what of them `sottovoce evaluate` keeps from the model."""

    data: Literal["private", "public", "synthetic"] = "private"
    held_out_share: Share = 0.2
    test_start: Time | None = None
    seed: int = Field(0, ge=0, lt=2**63)


class PublishSection(_Section):
    """[publish]: the DuckDB versions."""

    keep_versions: Positive = 5


class RunnerSection(_Section):
    """[runner]: the engine, its processes, into how many parts users are spread, where these wait, and the job's memory."""

    kind: Literal["direct", "flink"] = "direct"
    master: str = Field(LOCAL_FLINK, pattern=r"^(\[local\]|[^\s/:]+:\d{1,5})$")
    parallelism: Positive = 1
    environment: Literal["loopback", "process", "external"] = "loopback"
    worker: str | None = None
    artifacts: Path | None = None
    buckets: Annotated[Positive, Field(le=bounding.MAX_BUCKETS)] | None = None
    spill: bool = True
    memory_gb: float | None = Field(None, gt=0)
    workers: Positive | None = None
    checkpoint_seconds: float | None = Field(None, gt=0)

    @pydantic.model_validator(mode="after")
    def _worker_fits(self) -> Self:
        if (self.environment == "loopback") != (self.worker is None):
            raise ValueError(
                'environment = "process" needs worker, the program that starts one, and "external" the HOST:PORT of a pool of '
                'them; "loopback" takes none'
            )
        return self


class AlertsSection(_Section):
    """[alerts]: when `sottovoce status` says that something is wrong."""

    max_lag: int | None = Field(None, ge=0)
    max_delay_seconds: float | None = Field(None, gt=0)
    max_dead_share: float | None = Field(None, ge=0, le=1)
    max_late_share: float | None = Field(None, ge=0, le=1)
    min_windows_left: Positive | None = None


class Job(pydantic_settings.BaseSettings):
    """A whole job file."""

    model_config = pydantic_settings.SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="SOTTOVOCE_", env_nested_delimiter="__"
    )

    job: JobSection
    source: SourceSection
    kafka: KafkaSection | None = None
    catalogue: CatalogueSection | None = None
    privacy: PrivacySection
    window: WindowSection
    trending: TrendingSection | None = None
    selection: SelectionSection = SelectionSection()
    counts: CountsSection = CountsSection()
    cooccurrence: CooccurrenceSection = CooccurrenceSection()
    model: ModelSection = ModelSection()
    diversity: DiversitySection = DiversitySection()
    evaluation: EvaluationSection = EvaluationSection()
    publish: PublishSection = PublishSection()
    runner: RunnerSection = RunnerSection()
    alerts: AlertsSection = AlertsSection()

    @property
    def settling(self) -> dt.timedelta:
        """How long after a window's end and slack it is read: until then the broker may yet give an event an earlier time."""
        return dt.timedelta(seconds=0 if self.kafka is None else self.kafka.settle_seconds)

    @property
    def is_trending(self) -> bool:
        """Whether this is the part of a job that releases counts of short windows alone."""
        return self.job.name.endswith(TRENDING)

    @property
    def parts(self) -> "list[Job]":
        """The job itself and, where there is a [trending], its short windows: each is released and charged by itself."""
        short = self.trending
        if short is None:
            return [self]
        window = self.window.model_copy(
            update={
                **{name: getattr(short, name) for name in _Windows.model_fields},
                "start": self._first_short(short),
            }
        )
        bounds = ("max_partitions_contributed", "max_contributions_per_partition")
        part = {
            "job": self.job.model_copy(update={"name": self.job.name + TRENDING}),
            "window": window,
            "trending": None,
            "counts": self.counts.model_copy(update={"budget_share": 1.0, **{name: getattr(short, name) for name in bounds}}),
            # The other limits are of what the job reads, which is told once.
            "alerts": AlertsSection(
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

        def ends(place: int, window: WindowSection) -> Iterator[tuple[dt.datetime, int, int]]:
            first = 0 if after is None else window.count(after)
            return ((window.bounds(number)[1], place, number) for number in range(first, window.closed_count(until)))

        ordered = heapq.merge(*(ends(place, part.window) for place, part in enumerate(self.parts)))
        return ((place, number) for _, place, number in ordered)

    def _first_short(self, short: TrendingSection) -> dt.datetime:
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
    def _category_of_the_catalogue(self) -> "Job":
        feature = self.diversity.category_feature
        known = [] if self.catalogue is None else self.catalogue.features
        if feature is not None and feature not in known:
            raise ValueError(f"diversity.category_feature = {feature!r} is not among catalogue.features = {known}")
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
        if self.window.size == "all" or _time_of(short.size) >= self.window.duration:
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

    def _sections(self) -> Iterator[tuple[str, WindowSection]]:
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
    def _whole_budget(self) -> "Job":
        shares = {name: getattr(self, name).budget_share for name in _SHARES}
        if abs(sum(shares.values()) - 1) > 1e-9:
            given = " + ".join(f"{name}.budget_share {share}" for name, share in shares.items())
            raise ValueError(f"budget shares must add up to 1, not {given} = {sum(shares.values()):.6g}")
        return self


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
