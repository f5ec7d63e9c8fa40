import datetime as dt
import os
import pathlib
import re
import time
import tomllib
import types
import typing

import pydantic
import pytest

from models import training
from pipelines import config, sections

LEAST = """\
[job]
name = "retail"
data_set = "shop"
store = "build/retail"
[source]
kind = "csv"
paths = ["a.csv", "b.csv"]
columns = { privacy_id = "user" }
event_types = { view = 1.0 }
[privacy]
total_epsilon = 1.0
total_delta = 1e-6
expected_users = 4000
[window]
start = 2025-01-01
end = 2025-02-01
"""


ASKING = ["--evaluation.budget_share=0.1", "--cooccurrence.budget_share=0.7"]
SHORT = ["--trending.size=1h", "--trending.budget_share=0.3"]
TOPIC = ["--source.kind=kafka", "--source.paths", "[]", "--source.topic=e", "--kafka.bootstrap=b:1"]
BOOKS = ["--window.max_windows_contributed=2", "--trending.max_windows_contributed=9", "--window.size=1d"]


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("SOTTOVOCE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    path = tmp_path / "job.toml"
    path.write_text(LEAST)
    return path


def test_a_job_may_choose_what_training_can_do_and_has_the_same_defaults() -> None:
    fields = sections.ModelSection.model_fields
    assert {name: typing.get_args(fields[name].annotation) for name in training.CHOICES} == training.CHOICES
    assert sections.ModelSection().settings == training.Settings()


def test_a_least_job_file_gets_the_defaults(path):
    job, others = config.load(path)
    assert others == []
    assert job.model_dump() == {
        "job": {"name": "retail", "data_set": "shop", "store": pathlib.Path("build/retail")},
        "source": {
            "kind": "csv",
            "paths": ["a.csv", "b.csv"],
            "topic": None,
            "format": "json",
            "schema_file": None,
            "schemas": {},
            "message": None,
            "columns": {"privacy_id": "user", "item_id": "item_id", "event_time": "event_time"},
            "context": {},
            "event_types": {"view": 1.0},
            "time_unit": None,
            "min_value": None,
            "weigh_by_value": False,
            "max_skew_seconds": 300.0,
            "max_malformed_share": 0.01,
        },
        "kafka": None,
        "catalogue": None,
        "privacy": {
            "total_epsilon": 1.0,
            "total_delta": 1e-6,
            "unit": "user",
            "period": "lifetime",
            "composition": "gaussian",
            "ledger": None,
            "book": None,
            "expected_users": 4000,
            "allow_large_delta": False,
            "key_file": None,
            "encryption_key_file": None,
            "retention": None,
            "opt_out": None,
        },
        "window": {
            "size": "all",
            "every": None,
            "start": dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
            "end": dt.datetime(2025, 2, 1, tzinfo=dt.UTC),
            "slack_seconds": 0.0,
            "budget_share": 1.0,
            "max_windows_contributed": None,
            "min_separation": 1,
        },
        "trending": None,
        "selection": {"budget_share": 0.08, "max_partitions_contributed": 500, "delta_share": 0.5},
        "counts": {
            "budget_share": 0.12,
            "max_partitions_contributed": 50,
            "max_contributions_per_partition": 5,
            "engine": "columnar",
        },
        "cooccurrence": {"budget_share": 0.8, "max_items": "auto", "engine": "columnar", "noise": "chacha"},
        "model": {
            "retrain": None,
            "kind": "ensemble",
            "signal": "auto",
            "rank": 128,
            "feature_rank": 1024,
            "epochs": 0,
            "loss": "warp",
            "learning_rate": 0.0003,
            "neighbours": 50,
            "top_k": 20,
            "windows": 1,
            "decay": 1.0,
            "seed": 0,
        },
        "diversity": {
            "method": "none",
            "trade_off": 0.3,
            "max_per_category": None,
            "category_feature": None,
            "features": None,
            "serendipity": False,
            "candidates": 200,
        },
        "evaluation": {"data": "private", "budget_share": 0.0, "held_out_share": 0.2, "test_start": None, "seed": 0},
        "publish": {"keep_versions": 5, "promote": "guarded", "margin": 0.05},
        "runner": {
            "kind": "direct",
            "master": "[local]",
            "parallelism": 1,
            "environment": "loopback",
            "worker": None,
            "artifacts": None,
            "buckets": None,
            "spill": True,
            "memory_gb": None,
            "workers": None,
            "checkpoint_seconds": None,
        },
        "alerts": {
            "max_lag": None,
            "max_delay_seconds": None,
            "max_dead_share": None,
            "max_late_share": None,
            "min_windows_left": None,
        },
    }


def test_the_sample_job_file_is_valid():
    job, _ = config.load(pathlib.Path(config.__file__).parents[1] / "data/samples/online_retail.toml")
    assert (job.job.data_set, job.source.min_value, job.catalogue.kinds) == ("online-retail", 1.0, {"Description": "text"})


def test_without_columns_the_source_is_taken_to_use_our_names(path):
    path.write_text(LEAST.replace('columns = { privacy_id = "user" }\n', ""))
    names = {name: name for name in ("privacy_id", "item_id", "event_time")}
    assert config.load(path)[0].source.columns == names


def test_window_times_are_utc_whatever_the_zone_of_the_machine(path, monkeypatch):
    with monkeypatch.context() as tokyo:
        tokyo.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        job, _ = config.load(path)
    time.tzset()
    assert job.window.start.isoformat() == "2025-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("in_file", "variable", "flags", "rank"),
    [
        pytest.param("", None, [], 128, id="default"),
        pytest.param("[model]\nrank = 8", None, [], 8, id="file"),
        pytest.param("[model]\nrank = 8", "16", [], 16, id="environment over file"),
        pytest.param("[model]\nrank = 8", "16", ["--model.rank", "32"], 32, id="flag over environment"),
        pytest.param("[model]\nrank = 8", None, ["--model.rank=32"], 32, id="flag over file"),
        pytest.param("", None, ["--model.rank=32", "--model.rank", "64"], 64, id="last flag"),
    ],
)
def test_flags_win_over_the_environment_and_that_over_the_file(path, monkeypatch, in_file, variable, flags, rank):
    path.write_text(LEAST + in_file)
    if variable:
        monkeypatch.setenv("SOTTOVOCE_MODEL__RANK", variable)
    assert config.load(path, flags)[0].model == sections.ModelSection(rank=rank)


def test_a_flag_replaces_one_key_and_leaves_its_neighbours(path):
    job, _ = config.load(path, ["--source.event_types.view", "2", "--privacy.total_epsilon=0.5"])
    assert job.source.event_types == {"view": 2.0}
    assert (job.privacy.total_epsilon, job.privacy.total_delta) == (0.5, 1e-6)


def test_lists_and_tables_in_the_environment_are_json(path, monkeypatch):
    monkeypatch.setenv("SOTTOVOCE_SOURCE__PATHS", '["c.csv"]')
    monkeypatch.setenv("SOTTOVOCE_SOURCE__COLUMNS", '{"item_id": "thing"}')
    job, _ = config.load(path)
    columns = {"privacy_id": "user", "item_id": "thing", "event_time": "event_time"}
    assert (job.source.paths, job.source.columns) == (["c.csv"], columns)


def test_the_pseudonym_key_in_the_environment_is_no_setting(path, monkeypatch):
    monkeypatch.setenv("SOTTOVOCE_PSEUDONYM_KEY", "ab" * 32)
    assert "ab" * 32 not in config.load(path)[0].model_dump_json()


@pytest.mark.parametrize(
    ("flags", "others"),
    [
        pytest.param(["--runner=X", "--model.rank", "8", "--b", "1", "-v"], ["--runner=X", "--b", "1", "-v"], id="order"),
        pytest.param(["--runner", "direct"], ["--runner", "direct"], id="a section's name without a key"),
        pytest.param(["--a=b.c", "--d", "e.f"], ["--a=b.c", "--d", "e.f"], id="dots in values"),
    ],
)
def test_other_flags_go_to_beam_untouched_and_in_order(path, flags, others):
    assert config.load(path, flags)[1] == others


@pytest.mark.parametrize("flag", ["--privcy.total_epsilon", "--Privacy.total_epsilon", "--privacy."])
def test_a_misspelt_section_is_refused(path, flag):
    with pytest.raises(config.JobFileError, match=flag):
        config.load(path, [flag, "0.1"])


@pytest.mark.parametrize(
    ("flags", "section", "expected"),
    [
        pytest.param(["--job.name", "plain words"], "job", {"name": "plain words"}, id="plain text"),
        pytest.param(["--job.name", '"2024"'], "job", {"name": "2024"}, id="quoted text"),
        pytest.param(["--job.store", "/tmp/a b"], "job", {"store": pathlib.Path("/tmp/a b")}, id="path"),
        pytest.param(["--privacy.allow_large_delta", "true"], "privacy", {"allow_large_delta": True}, id="truth value"),
        pytest.param(["--privacy.total_epsilon", "1e-1"], "privacy", {"total_epsilon": 0.1}, id="float"),
        pytest.param(["--source.max_skew_seconds", "-0"], "source", {"max_skew_seconds": 0.0}, id="negative number"),
        pytest.param(["--source.paths", '["x.csv"]'], "source", {"paths": ["x.csv"]}, id="list"),
        pytest.param(["--source.context", '{ a = "b" }'], "source", {"context": {"a": "b"}}, id="table"),
        pytest.param(["--source.context.a", "b=c"], "source", {"context": {"a": "b=c"}}, id="equals sign in the value"),
        pytest.param(["--cooccurrence.max_items", "auto"], "cooccurrence", {"max_items": "auto"}, id="auto"),
        pytest.param(["--cooccurrence.max_items", "300"], "cooccurrence", {"max_items": 300}, id="number or auto"),
        pytest.param(
            ["--window.end", "2025-01-01T02:00:00+01:00"],
            "window",
            {"end": dt.datetime(2025, 1, 1, 1, tzinfo=dt.UTC)},
            id="time with an offset",
        ),
        pytest.param(
            ["--window.end", "2025-01-01T02:00:00"], "window", {"end": dt.datetime(2025, 1, 1, 2, tzinfo=dt.UTC)}, id="UTC"
        ),
    ],
)
def test_flags_have_toml_values_or_plain_text(path, flags, section, expected):
    values = getattr(config.load(path, flags)[0], section).model_dump()
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("text", ["2024", "true", "2025-01-01"])
def test_text_that_looks_like_another_type_stays_text_where_text_is_wanted(path, text):
    assert config.load(path, ["--job.name", text])[0].job.name == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--privacy.total_epsilon", "0"], r"privacy\.total_epsilon = 0: .* greater than 0", id="epsilon 0"),
        pytest.param(["--diversity.method", "max"], r"diversity\.method = 'max': .* 'none', 'mmr' or 'dpp'", id="diversity by"),
        pytest.param(
            ["--diversity.trade_off", "1.1"], r"diversity\.trade_off = 1\.1: .* less than or equal to 1", id="trade-off"
        ),
        pytest.param(
            ["--diversity.max_per_category", "2"], "diversity: max_per_category needs category_feature", id="cap of nothing"
        ),
        pytest.param(
            ["--diversity.category_feature", "genre"],
            r"diversity\.category_feature = 'genre' is not among catalogue\.features = \[\]",
            id="category of no catalogue",
        ),
        pytest.param(
            ["--diversity.category_feature", ""],
            r"diversity\.category_feature = '' is not among catalogue\.features = \[\]",
            id="category without a name",
        ),
        pytest.param(
            ["--diversity.features", '["genre"]'],
            r"diversity\.features = 'genre' is not among catalogue\.features = \[\]",
            id="features of no catalogue",
        ),
        pytest.param(["--privacy.total_epsilon", "-1"], r"privacy\.total_epsilon = -1: .* greater than 0", id="epsilon -1"),
        pytest.param(["--privacy.total_epsilon", "nan"], r"privacy\.total_epsilon = nan: .* finite", id="epsilon NaN"),
        pytest.param(["--privacy.total_epsilon", "inf"], r"privacy\.total_epsilon = inf: .* finite", id="epsilon infinite"),
        pytest.param(["--privacy.total_delta", "0"], r"privacy\.total_delta = 0: .* greater than 0", id="delta 0"),
        pytest.param(["--privacy.total_delta", "1"], r"privacy\.total_delta = 1: .* less than 1", id="delta 1"),
        pytest.param(
            ["--privacy.total_delta", "2.5e-4"],
            r"privacy: total_delta = 0\.00025 must be below 1/expected_users = 0\.00025: .*allow_large_delta",
            id="large delta",
        ),
        pytest.param(["--privacy.expected_users", "0"], r"privacy\.expected_users = 0: .* than or equal to 1", id="no users"),
        pytest.param(["--privacy.unit", "event"], r"privacy\.unit = 'event': Input should be 'user'", id="unit"),
        pytest.param(
            ["--counts.budget_share", "0.5"],
            r"budget shares must add up to 1, not selection\.budget_share 0\.08 \+ counts\.budget_share 0\.5 \+ .* = 1\.38",
            id="shares",
        ),
        pytest.param(["--counts.budget_share", "0"], r"counts\.budget_share = 0: .* greater than 0", id="share 0"),
        pytest.param(["--model.rnk", "3"], r"model\.rnk: is not a known key", id="unknown key"),
        pytest.param(["--model.rank", "many"], r"model\.rank = 'many': .* valid integer", id="wrong type"),
        pytest.param(["--model.rank", "1.5"], r"model\.rank = 1\.5: .* valid integer", id="fraction"),
        pytest.param(["--source.paths", "a.csv"], r"source\.paths = 'a\.csv': .* valid list", id="text for a list"),
        pytest.param(["--source.paths", "[]"], r"source: .* the other kinds need paths", id="no paths"),
        pytest.param(["--source.kind", "xml"], r"source\.kind = 'xml': .* 'parquet', 'csv', 'jsonl' or 'kafka'", id="kind"),
        pytest.param(["--window.every", "1d"], r"every = .1d. must not be longer than size = .all.", id="sliding over all"),
        pytest.param(["--window.size=1d", "--window.every=2d"], r"every = .2d. must not be longer", id="gaps between windows"),
        pytest.param(["--trending.size=1h"], r"trending\.budget_share: is required", id="short windows without a share"),
        pytest.param(
            [*SHORT, "--window.size=1h"], r"trending\.size = '1h' must be shorter than window\.size = '1h'", id="not short"
        ),
        pytest.param(SHORT, r"trending\.size = '1h' must be shorter than window\.size = 'all'", id="short windows of all"),
        pytest.param([*SHORT, "--window.size=31d"], r"without a \[catalogue\] .* a later window\.end", id="items too late"),
        pytest.param(
            [*SHORT, *BOOKS, "--window.budget_share=0.8"], r"trending\.budget_share = 1\.1 must be at most 1", id="both shares"
        ),
        pytest.param(
            [*SHORT, *BOOKS[1:], "--window.size=1d", "--trending.size=7h", "--privacy.period=day"],
            r"trending\.max_windows_contributed: windows of '7h' .* a size that divides it",
            id="a short window in two periods",
        ),
        pytest.param(
            [*TOPIC, "--kafka.late=a", "--kafka.dead_letters=a"],
            r"kafka\.dead_letters and kafka\.late are both 'a': each needs a topic of its own",
            id="one topic for two things",
        ),
        pytest.param([*TOPIC, "--kafka.late=e"], r"kafka\.late and source\.topic are both 'e'", id="a topic into itself"),
        pytest.param(["--job.name=a/trending"], r"job\.name = 'a/trending': must not end with", id="a short job's name"),
        pytest.param(["--job.name=a/evaluation"], r"job\.name = 'a/evaluation': must not end with", id="an evaluation's name"),
        pytest.param(
            ["--evaluation.budget_share=0.1"],
            r"must add up to 1, not .* \+ evaluation\.budget_share 0\.1 = 1\.1",
            id="a share too much",
        ),
        pytest.param(
            [*ASKING, "--evaluation.data=public"],
            r'budget_share = 0\.1 is for data = "private", not .public.',
            id="public, charged",
        ),
        pytest.param(
            [*ASKING, "--window.size=1d", "--window.max_windows_contributed=2"],
            r"evaluation\.budget_share: not with window\.max_windows_contributed",
            id="asked by book",
        ),
        pytest.param(
            ["--window.size=2d", "--window.every=1d", "--window.max_windows_contributed=2", "--privacy.period=month"],
            r'cross from one period \(month\) into the next, .* Take privacy.period = "lifetime"',
            id="sliding",
        ),
        pytest.param(["--catalogue.path=i.csv", "--catalogue.topic=i"], r"catalogue: needs path, .* or topic", id="catalogues"),
        pytest.param(["--catalogue.topic", "items"], r"catalogue\.topic: .* for source\.kind = .kafka.", id="items of files"),
        pytest.param(["--source.kind", "kafka"], r'source: kind = "kafka" needs topic and no paths', id="paths of a topic"),
        pytest.param(["--source.topic", "events"], r'source: kind = "kafka" needs topic and no paths', id="topic of files"),
        pytest.param(
            ["--kafka.bootstrap", "h:1"], r'the section \[kafka\] is for source\.kind = "kafka"', id="broker for files"
        ),
        pytest.param(
            ["--kafka.bootstrap=h:1", "--kafka.security=sasl_ssl"], "needs both username and password_file", id="no login"
        ),
        pytest.param(["--alerts.max_lag", "5"], r"alerts\.max_lag: files have no lag", id="lag of files"),
        pytest.param(["--alerts.max_delay_seconds", "0"], r"max_delay_seconds = 0: .* greater than 0", id="no delay at all"),
        pytest.param(["--alerts.max_late_share", "2"], r"max_late_share = 2: .* or equal to 1", id="late share over 1"),
        pytest.param(["--alerts.min_windows_left", "0"], r"min_windows_left = 0: .* or equal to 1", id="no window left"),
        pytest.param(["--source.columns.user", "u"], r"source\.columns: maps user, but an event has event_id, .*", id="column"),
        pytest.param(["--source.event_types.x", "nan"], r"source\.event_types\.x = nan: .* finite", id="weight NaN"),
        pytest.param(["--source.min_value", "nan"], r"source\.min_value = nan: .* finite", id="min_value NaN"),
        pytest.param(
            ["--source.max_malformed_share", "1.1"], r"max_malformed_share = 1\.1: .* or equal to 1", id="share over 1"
        ),
        pytest.param(
            ["--window.end", "2025-01-01"],
            r"window: start = 2025-01-01 00:00:00\+00:00 must be before end = 2025-01-01",
            id="window",
        ),
        pytest.param(
            ["--cooccurrence.max_items", "few"], r"max_items = 'few': must be \"auto\" or in 1\.\.20000", id="max_items"
        ),
        pytest.param(["--runner.master", "http://h:1"], r"runner\.master = 'http://h:1': .* match pattern", id="master"),
        pytest.param(["--runner.environment", "process"], r'runner: .*"process" needs worker, the program', id="no worker"),
        pytest.param(["--runner.worker", "h:1"], r'runner: .*"loopback" takes none', id="worker of nothing"),
        pytest.param(
            ["--runner.environment=external", "--runner.worker=h:1", "--job.store=build/store"],
            r"job\.store = 'build/store' with runner\.environment = 'external': .* from the root on",
            id="relative store",
        ),
        pytest.param(
            ["--runner.environment=external", "--runner.worker=h:1", "--job.store=/s", "--privacy.ledger=sqlite:///ledger"],
            r"privacy\.ledger = 'ledger' with runner\.environment = 'external': .* from the root on",
            id="relative ledger",
        ),
        pytest.param(
            ["--runner.environment=external", "--runner.worker=h:1", "--job.store=/s", "--privacy.book=book"],
            r"privacy\.book = 'book' with runner\.environment = 'external': .* from the root on",
            id="relative book",
        ),
        pytest.param(
            ["--privacy.book=build/retail/book"], r"privacy\.book = 'build/retail/book' lies in job", id="book in store"
        ),
        pytest.param(["--job.name="], r"job\.name = '': .* at least 1 character", id="empty text"),
        pytest.param(["--model.rank"], r"^--model\.rank: needs a value", id="no value"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_rule(path, flags, message):
    with pytest.raises(config.JobFileError, match=f"(?s){message}"):
        config.load(path, flags)


WORKERS = ["--runner.environment=external", "--runner.worker=h:1", "--source.paths", '["/e"]', "--job.store=/s"]


@pytest.mark.parametrize("flags", [[], WORKERS], ids=["here", "workers elsewhere"])
@pytest.mark.parametrize(
    ("given", "book"), [("/b", pathlib.Path("/b")), ("s3://bucket/b", "s3://bucket/b")], ids=["path", "URL"]
)
def test_a_book_is_a_path_or_a_url_as_it_was_written(path, flags, given, book):
    flags = ["--privacy.book", given, *flags]
    assert config.load(path, flags)[0].privacy.book == book


def test_a_large_delta_may_be_allowed(path):
    job, _ = config.load(path, ["--privacy.total_delta", "0.1", "--privacy.allow_large_delta", "true"])
    assert job.privacy.total_delta == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            LEAST.replace("total_epsilon = 1.0\n", ""), r"privacy\.total_epsilon: is required but not given", id="key"
        ),
        pytest.param("", r"job: is required.*source: is required.*privacy: is required.*window: is required", id="all of it"),
        pytest.param(LEAST + "[modle]\nrank = 3", r"modle: is not a known key", id="section"),
        pytest.param("model = 3\n" + LEAST, r"model = 3: Input should be a valid dictionary", id="not a section"),
        pytest.param("[job", r"is not TOML: ", id="not TOML"),
        pytest.param(LEAST + "[job]", r"is not TOML: ", id="twice the same section"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(path, text, message):
    path.write_text(text)
    with pytest.raises(config.JobFileError, match=rf"(?s)job\.toml: ?\s*{message}"):
        config.load(path)


def test_every_mistake_is_told_at_once(path):
    with pytest.raises(config.JobFileError) as caught:
        config.load(path, ["--model.rank", "0", "--privacy.total_epsilon", "0"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  privacy.total_epsilon = 0",
        "  model.rank = 0",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("SOTTOVOCE_MODEL__RANK", "many", r"model\.rank = 'many': .* valid integer", id="value"),
        pytest.param("SOTTOVOCE_MODEL__RNK", "3", r"model\.rnk: is not a known key", id="key"),
        pytest.param("SOTTOVOCE_SOURCE__PATHS", "a.csv", "source", id="not JSON"),
    ],
)
def test_a_wrong_variable_is_named(path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(config.JobFileError, match=message):
        config.load(path)


def test_a_key_inside_a_plain_value_is_refused(path):
    with pytest.raises(config.JobFileError, match=r"model\.rank"):
        config.load(path, ["--model.rank", "3", "--model.rank.x", "4"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: path / "none.toml", r"none\.toml: can't be read \(No such file or directory\)", id="no file"),
        pytest.param(lambda path: path, r"can't be read \(Is a directory\)", id="directory"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, make, message):
    with pytest.raises(config.JobFileError, match=message):
        config.load(make(tmp_path))


def test_a_file_that_is_not_text_is_not_toml(path):
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(config.JobFileError, match=r"job\.toml: is not TOML: "):
        config.load(path)


def all_sections() -> dict[str, type[pydantic.BaseModel]]:
    """The job file's sections; an optional one is given as a union with None."""
    found = {}
    for name, field in config.Job.model_fields.items():
        union = isinstance(field.annotation, types.UnionType)
        found[name] = next(a for a in typing.get_args(field.annotation) if a is not type(None)) if union else field.annotation
    return found


def documented() -> dict[tuple[str, str], str]:
    """(section, key) -> the default column of docs/job-file.md."""
    text = (pathlib.Path(config.__file__).parents[1] / "docs/job-file.md").read_text()
    rows = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        section = re.match(r"\[(\w+)\]", part)
        for key, _, default in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", part, flags=re.MULTILINE) if section else ():
            rows[section[1], key] = default
    return rows


def test_the_docs_name_every_key_and_no_other():
    assert set(documented()) == {(name, key) for name, section in all_sections().items() for key in section.model_fields}


def test_the_docs_tell_the_defaults():
    for (section, key), default in documented().items():
        field = all_sections()[section].model_fields[key]
        if field.is_required():
            assert default == "required", (section, key)
        elif field.default is not None:
            [shown] = re.findall("`(.*)`", default)
            assert tomllib.loads(f"value = {shown}".replace(r"\|", "|"))["value"] == field.default, (section, key)
        else:
            assert default == "none", (section, key)
