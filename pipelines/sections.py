"""The sections of the job file, each with the rules that it can check by itself. docs/job-file.md lists the keys."""

import datetime as dt
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from data import files, periods
from models import rerank, training
from transforms import bounding
from transforms.ingest import decode, formats, kafka_client, stream
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


def time_of(duration: str) -> dt.timedelta:
    """Returns how long a duration of the job file is."""
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[duration[-1]]
    return dt.timedelta(**{unit: int(duration[:-1])})


def _as_place(given: Any) -> Any:
    if not isinstance(given, str | Path):
        raise ValueError("must be a path or a URL")
    return given if isinstance(given, str) and files.is_url(given) else Path(given)


Place = Annotated[Path | str, pydantic.BeforeValidator(_as_place)]
"""A path, or an object store's URL: a text, as a Path would lose a slash."""
Positive = Annotated[int, Field(ge=1), pydantic.BeforeValidator(_no_truth_value)]

TRENDING = "/trending"
"""What a job's name ends with in the ledger where the job's short windows are meant."""
EVALUATION = "/evaluation"
"""The same where evaluations of its models are."""

LOCAL_FLINK = "[local]"
"""The master of a Flink that starts and ends with a job."""


def utc(time: dt.datetime) -> dt.datetime:
    """The time in UTC, which it is in where it names no zone."""
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JobSection(_Section):
    """[job]: its name, the data set whose users' budget it spends, and where its results go."""

    name: str = Field(min_length=1, max_length=200 - len(EVALUATION))
    data_set: str = Field(min_length=1, max_length=200)
    store: Place

    @pydantic.field_validator("name")
    @classmethod
    def _not_that_of_a_part(cls, name: str) -> str:
        for ending, part in ((TRENDING, "short windows"), (EVALUATION, "evaluations")):
            if name.endswith(ending):
                raise ValueError(f"must not end with {ending!r}: the ledger calls a job's {part} so")
        return name

    @property
    def whole(self) -> str:
        """The name of the job that this one is a part of, or its own."""
        return self.name.removesuffix(TRENDING).removesuffix(EVALUATION)


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
    encryption_key_file: Path | None = None
    retention: Duration | None = None
    opt_out: Path | None = None

    @pydantic.model_validator(mode="after")
    def _no_key_in_the_file(self) -> "PrivacySection":
        for name in ("key_file", "encryption_key_file"):
            given = getattr(self, name)
            if given and re.fullmatch("(aes256:)?[0-9a-fA-F]{32,}", given.name):
                raise ValueError(f"{name} must name a file that holds the key, not be the key")
        return self

    @pydantic.model_validator(mode="after")
    def _small_delta(self) -> "PrivacySection":
        if self.total_delta >= 1 / self.expected_users and not self.allow_large_delta:
            raise ValueError(
                f"total_delta = {self.total_delta} must be below 1/expected_users = {1 / self.expected_users:.3g}: a larger "
                "one allows a release that shows one user whole (allow_large_delta = true takes that)"
            )
        return self


class SizedWindows(_Section):
    """Windows of one length, from a start on: how long, how far apart, and what each may cost."""

    size: str
    every: Duration | None = None
    budget_share: float = Field(1.0, gt=0, le=1)
    max_windows_contributed: Positive | None = None
    min_separation: Positive = 1

    @property
    def step(self) -> dt.timedelta:
        """From the start of a window to that of the next."""
        return time_of(self.every or self.size)

    @pydantic.model_validator(mode="after")
    def _windows_that_fit(self) -> Self:
        if self.every is not None and (self.size == "all" or self.step > time_of(self.size)):
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


class WindowSection(SizedWindows):
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
        return self.end - self.start if self.size == "all" else time_of(self.size)

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


class TrendingSection(SizedWindows):
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
    """[model]: the model trained on the released tables, on each release or when the last one is so old."""

    retrain: Duration | None = None
    kind: Literal["hybrid", "ensemble"] = "ensemble"
    signal: Literal["auto", "low-rank", "prior", "stacked"] = "auto"
    rank: Positive = 128
    feature_rank: Positive = 1024
    epochs: int = Field(0, ge=0)
    loss: Literal["warp", "warp-kos", "bpr", "logistic"] = "warp"
    learning_rate: float = Field(0.0003, gt=0, le=1)
    neighbours: Positive = 50
    top_k: Positive = 20
    seed: int = 0
    windows: Positive = 1
    decay: float = Field(1.0, gt=0, le=1)

    @property
    def settings(self) -> training.Settings:
        """For `models.training`."""
        return training.Settings(**self.model_dump(exclude={"retrain", "windows", "decay"}))

    @property
    def lasts(self) -> dt.timedelta:
        """How old a model may get before a new release trains another."""
        return dt.timedelta(0) if self.retrain is None else time_of(self.retrain)


class DiversitySection(_Section):
    """[diversity]: whether and how recommendations are re-ranked, so that what is in one list is less alike."""

    method: Literal["none", "mmr", "dpp"] = "none"
    trade_off: float = Field(0.3, ge=0, le=1)
    max_per_category: Positive | None = None
    category_feature: str | None = None
    features: list[str] | None = None
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
        return time_of(self.retention)

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
    """[evaluation]: whose data the events are, what of them is kept from the models, and what asking for it may cost."""

    data: Literal["private", "public", "synthetic"] = "private"
    budget_share: float = Field(0.0, ge=0, lt=1)
    held_out_share: Share = 0.2
    test_start: Time | None = None
    seed: int = Field(0, ge=0, lt=2**63)

    @pydantic.model_validator(mode="after")
    def _only_private_data_cost(self) -> Self:
        if self.budget_share and self.data != "private":
            raise ValueError(
                f'budget_share = {self.budget_share:g} is for data = "private", not {self.data!r}: what is nobody\'s secret '
                "costs nothing to evaluate"
            )
        return self


class PublishSection(_Section):
    """[publish]: the DuckDB versions, and which model they have."""

    keep_versions: Positive = 5
    promote: Literal["guarded", "always", "manual"] = "guarded"
    margin: Annotated[float, Field(ge=0, lt=1), pydantic.BeforeValidator(_no_truth_value)] = 0.05


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
