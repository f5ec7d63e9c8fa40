"""No way from events to what is published goes round a Release... step: in the pipeline of every job, wired and not run.

What a graph can't show, such as what a closure holds, other tests look at: what a manifest says hangs on no event (here), and
the noise of a step is what was charged (test_release.py, tests/transforms).
"""

import ast
import dataclasses
import datetime as dt
import pathlib
import types
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest

from data import ledger, store, tables, vault
from pipelines import asking, evaluate_private, release, source, stream
from tests.pipelines import example, graph, topics
from tests.pipelines.example import load, view, write_job
from transforms import spill
from transforms.ingest import consent, pseudonym
from transforms.ingest import stream as ingest
from transforms.ingest import topics as reading
from transforms.release import commit, counts, grant, selection, tally

ROOT = pathlib.Path(__file__).parents[2]
ONE = [view("ann", "a")]
DAYS = ["--window.size=1d", "--window.budget_share=0.1"]
TRENDING = [*DAYS, "--trending.size=6h", "--trending.budget_share=0.05"]
BOOK = ["--window.max_windows_contributed=2"]
HELD_OUT = ["--evaluation.budget_share=0.1", "--cooccurrence.budget_share=0.7"]


@pytest.fixture(autouse=True)
def no_broker(monkeypatch):
    """A topic of one partition and a consent topic, as a broker would tell of them."""
    now = dt.datetime.now(dt.UTC)
    monkeypatch.setattr(reading, "ranges", lambda *_, **__: [reading.Range("events", 0, 0, 9, now)])
    monkeypatch.setattr(consent, "opted_out", lambda *_: {"bob"})


def of_files(directory, *flags, part=None, catalogue=True, events=ONE):
    """The release of a job over files: of all, or of the first window of a part of it."""
    job = load(write_job(directory, events, catalogue=catalogue), *flags)
    if part is None:
        return graph.built(lambda: release.run(job))
    return graph.built(lambda: release.run_window(job.parts[part], 0, source.find))


def of_topic(directory, *flags, part=0):
    job = topic_job(directory, *flags)
    return graph.built(lambda: release.run_window(job.parts[part], 0, source.find))


def of_closed(directory, *flags, part=0, opt_outs=None):
    """The release of a window that a stream has closed."""
    job = topic_job(directory, *flags)
    closed = ingest.Closed([spill.Part("closed.arrow", 0)], {"events/0": 1}, {"ok": 1}, ["closed.letters"])

    def find(one, now, catalogue_ids):
        return source.ClosedWindow(closed, pseudonym.read_key(one.privacy.key_file), opt_outs, vault.Vault())

    return graph.built(lambda: release.run_window(job.parts[part], 0, find))


def of_evaluation(directory, *flags, events=ONE):
    """The evaluation of no model but popularity."""
    job = load(write_job(directory, events), *HELD_OUT, *flags)
    window = {"window_start": job.window.start.isoformat(), "window_end": job.window.end.isoformat()}
    question = asking.Question(job.job.store, {"release_id": "0" * 32, **window}, [], 20, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_private, "_question", lambda *_: question)
        return graph.built(lambda: evaluate_private.run(job))


def of_stream(directory, *flags):
    """The half of a stream that reads: it ends with closed windows, where `of_closed` begins."""
    job = topic_job(directory, *flags)
    (directory / "stream").mkdir()
    return graph.built(lambda: next(stream._closed(job, (0, 0), directory / "stream", [], [])))


def topic_job(directory, *flags):
    path, _ = topics.write_job(directory, types.SimpleNamespace(bootstrap="127.0.0.1:1"))
    return example.load(path, *flags)


NOISE = {f"{name}/AddNoise" for name in ("ReleaseSelection", "ReleaseCounts", "ReleaseCooccurrence")}
SHORT = {"ReleaseCounts/AddNoise"}
BY_PIPELINEDP = {"ReleaseCounts/Compute DP metrics", "ReleaseCooccurrence/Compute DP metrics"}
FILES = "IngestEvents/ReadAndDecode/ParDo(ReadAndDecode)"
TOPIC = "IngestEvents/ReadAndDecode/ParDo(ReadAndDecodeTopic)"
CLOSED = "ClosedWindow/Impulse"

JOBS = {
    "files": (of_files, [], {}, NOISE, FILES),
    "no catalogue": (of_files, [], {"catalogue": False}, NOISE, FILES),
    "in memory": (of_files, ["--runner.spill=false"], {}, NOISE, FILES),
    "reference counts": (
        of_files,
        ["--counts.engine=reference"],
        {},
        NOISE - SHORT | {"ReleaseCounts/Compute DP metrics"},
        FILES,
    ),
    "reference engine": (
        of_files,
        ["--counts.engine=reference", "--cooccurrence.engine=reference"],
        {},
        {"ReleaseSelection/AddNoise", *BY_PIPELINEDP},
        FILES,
    ),
    "PipelineDP's noise": (of_files, ["--cooccurrence.noise=pipelinedp"], {}, NOISE, FILES),
    "held out": (of_files, HELD_OUT, {}, NOISE, FILES),
    "window": (of_files, DAYS, {"part": 0}, NOISE, FILES),
    "book": (of_files, [*DAYS, *BOOK], {"part": 0}, NOISE, FILES),
    "sliding": (of_files, [*DAYS, *BOOK, "--window.size=2d", "--window.every=1d"], {"part": 0}, NOISE, FILES),
    "trending": (of_files, TRENDING, {"part": 1}, SHORT, FILES),
    "trending, book": (of_files, [*TRENDING, "--trending.max_windows_contributed=2"], {"part": 1}, SHORT, FILES),
    "topic": (of_topic, DAYS, {}, NOISE, TOPIC),
    "topic, book": (of_topic, [*DAYS, *BOOK], {}, NOISE, TOPIC),
    "topic, trending": (of_topic, TRENDING, {"part": 1}, SHORT, TOPIC),
    "stream's window": (of_closed, DAYS, {}, NOISE, CLOSED),
    "stream's window, opt-outs": (of_closed, [*DAYS, *BOOK], {"opt_outs": pa.array(["ann"])}, NOISE, CLOSED),
    "stream's window, trending": (of_closed, TRENDING, {"part": 1}, SHORT, CLOSED),
    "evaluation": (of_evaluation, [], {}, {"ReleaseEvaluation/AddNoise"}, FILES),
}


@pytest.mark.parametrize("name", JOBS)
def test_nothing_is_published_that_a_release_step_gave_no_noise(tmp_path, name):
    build, flags, more, noise, reader = JOBS[name]
    pipeline = build(tmp_path, *flags, **more)
    assert graph.bypasses(pipeline) == []
    # That there is something to guard: what was read comes to each of these steps, and they to CommitRelease.
    assert len(graph.commits(pipeline)) == 1
    drawn = {step.full_label: step for step in graph.steps(pipeline) if graph.is_noise(step)}
    assert set(drawn) == noise
    assert all(reader in graph.sources(step.outputs[None]) for step in drawn.values())
    published = {label for each in graph.committed(pipeline) for label in graph.sources(each)}
    assert noise <= published


@pytest.mark.parametrize("flags", [DAYS, TRENDING], ids=["windows", "trending"])
def test_what_a_stream_reads_waits_with_the_operator(tmp_path, flags):
    pipeline = of_stream(tmp_path, *flags)
    assert graph.bypasses(pipeline) == []
    assert graph.commits(pipeline) == []


def test_every_release_step_and_every_job_that_publishes_is_looked_at():
    drawn = {label.partition("/")[0] for _, _, _, noise, _ in JOBS.values() for label in noise}
    # The reference engine's two stand under the labels of those that they stand for.
    assert {each.__name__.replace("Reference", "") for each in graph.release_classes()} == drawn
    assert graph.release_classes() == set(graph.NOISE)
    found = {name for path in (ROOT / "pipelines").glob("*.py") for name in calling(path, {"CommitRelease", "pipeline"})}
    assert found == {"release.build", "evaluate_private.build", "release.execute", "stream._closed"}


def calling(path: pathlib.Path, names: set[str]) -> set[str]:
    """The functions of a module that wire a CommitRelease or make a pipeline."""
    functions = [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)]
    return {
        f"{path.stem}.{function.name}"
        for function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in names
    }


@pytest.mark.parametrize("method", ["write_part", "finish"])
def test_tables_get_into_an_attempt_by_its_commit_alone(method):
    rooms = ("data", "transforms", "models", "pipelines")
    found = {str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*.py") if calling(path, {method})}
    # A book's pages are finished too: theirs is another method of that name.
    assert found - {"transforms/release/admission.py"} == {"transforms/release/commit.py"}


# Mutations: each would publish something of the events, and must be found.


def adding(patch, name, make):
    """Releases one more table, made of the grouped users."""
    whole = release._whole

    def more(users, *given):
        released, reports = whole(users, *given)
        return {**released, name: make(users)}, reports

    patch.setattr(release, "_whole", more)


def users_straight(patch):
    adding(patch, "users", lambda users: users | "Users" >> beam.Map(spill.read))


def a_release_of_our_own(patch):
    class ReleaseUsers(beam.PTransform):
        def expand(self, users):
            return users | "AddNoise" >> beam.Map(spill.read)

    adding(patch, "users", lambda users: users | "ReleaseUsers" >> ReleaseUsers())


def another_step_called_noise(patch):
    """In a true Release..., but not its own step."""

    def expand(self, users):
        return users | "Within" >> beam.ParDo(Inner())

    class Inner(beam.DoFn):
        def process(self, part):
            yield spill.read(part)

    patch.setattr(selection.ReleaseSelection, "expand", expand)


def exact_sums(patch):
    patch.setattr(counts.ReleaseCounts, "expand", lambda self, users: users | "AddCounts" >> beam.Map(spill.read))


def exact_sums_beside_noisy_ones(patch):
    expand = counts.ReleaseCounts.expand

    def both(self, users):
        return (expand(self, users), users | "Exact" >> beam.Map(spill.read)) | "Both" >> beam.Flatten()

    patch.setattr(counts.ReleaseCounts, "expand", both)


def dead_letters_counted_into_what_commits(patch):
    def expand(self, buckets):
        return (
            self._dead_letters
            | beam.combiners.Count.Globally()
            | "Count" >> beam.Map(lambda n: ledger.Grant(str(n), 1, "reserved"))
        )

    patch.setattr(tally.NoteCounts, "expand", expand)


def outcomes_beside_the_grant(patch):
    def expand(self, outcomes):
        return outcomes | "Reserve" >> beam.Map(lambda found: found).with_output_types(Any)  # else Beam would see it

    patch.setattr(grant.ReserveBudget, "expand", expand)


def a_side_input_of_commit(patch):
    expand, read_and_reserve = commit.CommitRelease.expand, release.read_and_reserve
    letters = []

    def reading_too(*given):
        read, grants = read_and_reserve(*given)
        letters.append(read.dead_letters)
        return read, grants

    def more(self, released):
        ids = expand(self, released)
        return ids | "WithLetters" >> beam.Map(lambda id_, all_: f"{id_} {all_}", beam.pvalue.AsList(letters[0]))

    patch.setattr(release, "read_and_reserve", reading_too)
    patch.setattr(commit.CommitRelease, "expand", more)


def a_file_of_its_own(patch):
    whole = release._whole

    def writing_too(users, *given):
        _ = users | "WriteUsers" >> beam.io.WriteToText("users")
        return whole(users, *given)

    patch.setattr(release, "_whole", writing_too)


MUTATIONS = {
    users_straight: "GroupByUser/.* -> Users -> CommitRelease/",
    a_release_of_our_own: "GroupByUser/.* -> ReleaseUsers/AddNoise -> CommitRelease/",
    another_step_called_noise: "GroupByUser/.* -> ReleaseSelection/Within -> CommitRelease/",
    exact_sums: "GroupByUser/.* -> ReleaseCounts/AddCounts -> CommitRelease/",
    exact_sums_beside_noisy_ones: "GroupByUser/.* -> ReleaseCounts/Exact -> ReleaseCounts/Both -> CommitRelease/",
    dead_letters_counted_into_what_commits: "IngestEvents/.* -> NoteCounts/Count -> CommitRelease/",
    outcomes_beside_the_grant: "ReserveBudget/Reserve: gives Any, not grants",
    a_side_input_of_commit: "IngestEvents/.* -> CommitRelease/WithLetters",
    a_file_of_its_own: "WriteUsers/.*: ends here",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda each: each.__name__)
def test_a_bypass_is_found(tmp_path, monkeypatch, mutate):
    mutate(monkeypatch)
    assert any(graph.matches(MUTATIONS[mutate], each) for each in graph.bypasses(of_files(tmp_path)))


OTHERS = [view(f"u{i}", "abcd"[i % 4], f"e{i}") for i in range(50)] + [view("", "a"), view("bob", "z")]


def manifest(pipeline: beam.Pipeline) -> dict:
    """What a release will say beside its tables."""
    [found] = graph.commits(pipeline)
    return found._manifest


@pytest.mark.parametrize("build", [of_files, of_evaluation])
def test_what_a_manifest_says_hangs_on_no_event(tmp_path, build):
    one, other = (manifest(build(tmp_path / str(len(events)), events=events)) for events in (ONE, OTHERS))
    assert one == other


def test_a_manifest_with_the_files_digests_is_found(tmp_path, monkeypatch):
    build = release.build

    def telling(root, found, group, planned, request):
        return build(root, found, group, dataclasses.replace(planned, asked=found.digests), request)

    monkeypatch.setattr(release, "build", telling)
    one, other = (manifest(of_files(tmp_path / str(len(events)), events=events)) for events in (ONE, OTHERS))
    assert one != other


def test_a_grants_page_is_nowhere_in_what_is_published(tmp_path, monkeypatch):
    """Its digest comes from who is in the contribution book."""
    monkeypatch.setattr(ledger.Ledger, "publish", lambda *_: True)
    ledger_url, found = f"sqlite:///{tmp_path}/ledger.sqlite", []
    for digest in ("a" * 64, "b" * 64):
        page = ledger.Page("series", 1, 1, 2, 1, None, digest)
        place = tmp_path / digest[:1]
        store.Store(place).write_part("attempt", "items", tables.ITEMS.empty_table())
        commit.commit([], [ledger.Grant("release", 1, "reserved", page)], str(place), ledger_url, "attempt", {"a": 1})
        found.append({path.relative_to(place): path.read_bytes() for path in place.rglob("*.json")})
    assert found[0] == found[1]
    assert found[0]
