"""Jobs whose catalogue is a real topic: as with a file of the same rows, and as it is when a window is released."""

import json

import pytest

from data import catalogue, database, errors
from pipelines import cli, contract, release, source
from tests.pipelines import example, topics
from tests.pipelines.example import charges, crashing, published, view
from tests.pipelines.test_topics import DAYS, figures, outcomes, until, without_noise
from transforms.ingest import kafka_client

__all__ = ["without_noise"]

ROWS = [
    {"item_id": "a", "title": "Apple", "genre": ["fruit", "red"], "price": 2},
    {"item_id": "b", "genre": [], "price": 2.5, "more": {"x": 1}},
    {"item_id": "c", "title": "Carrot", "genre": None, "brand": "x"},
]
BY_DAY = [
    view(f"u{i}", item, "", f"2025-01-0{day}T12:00", f"2025-01-0{day}T12:00")
    for i in range(3)
    for item in "ad"
    for day in (1, 2)
]


def write_job(directory, broker, *flags):
    """A job with events in a topic and items a, b, c in another; returns it, its file and the topics."""
    path, topic = topics.write_job(directory, broker)
    items = topics.move_items(path, topic)
    job = topics.load(path, *flags)
    topics.send(broker, items, map(topics.item, "abc"))
    return job, path, topic, items


def test_a_topic_gives_the_catalogue_of_a_file_of_the_same_rows(broker, tmp_path):
    job, _, _, items = write_job(tmp_path, broker, '--catalogue.features=["genre", "price", "brand"]')
    sent = [{"key": row["item_id"].encode(), "value": json.dumps(row).encode()} for row in reversed(ROWS)]
    topics.send(broker, items, [*sent, topics.item("d"), topics.item("d", None)])
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    by_file = catalogue.load(tmp_path / "items.jsonl", {}, job.catalogue.features)
    by_topic = source.load_catalogue(job)
    assert by_topic.table.equals(by_file.table)
    assert by_topic.kinds == by_file.kinds == {"genre": "multi", "price": "number", "brand": "categorical"}


def test_a_run_has_the_items_of_the_topic_and_publishes_their_features(broker, tmp_path):
    job, path, topic, items = write_job(tmp_path, broker, *DAYS)
    topics.send(broker, items, [topics.item("b", None)])
    topics.send(broker, topic, map(topics.message, BY_DAY))
    assert cli.main(["run", str(path), "--until", "2025-01-02T01:00", *DAYS]) == 0
    assert {key: value for key, value in figures(job)[0].items() if "view" in key} == {("a", "view"): (3, 3)}
    assert outcomes(job)[0]["item_id is not in the catalogue"] == 3
    with database.connect(tmp_path / "store") as connection:
        rows = connection.sql("select item_id, title, genre from items order by all").fetchall()
    assert rows == [("a", "A", "fruit"), ("c", "C", "fruit")]


@pytest.mark.parametrize("book", [[], ["--window.max_windows_contributed=2"]], ids=["each charged", "by the book"])
@pytest.mark.parametrize("kind", ["file", "topic"])
def test_a_catalogue_that_changes_between_a_crash_and_its_retry_neither_blocks_nor_charges_twice(broker, tmp_path, kind, book):
    if kind == "file":
        path = example.write_job(tmp_path, BY_DAY)
        job = example.load(path, *DAYS, *book)
    else:
        job, _, topic, items = write_job(tmp_path, broker, *DAYS, *book)
        topics.send(broker, topic, map(topics.message, BY_DAY))
    (tmp_path / "items.csv").write_text("item_id,genre\na,fruit\nb,fruit\nc,root\n")
    with crashing("finish"):
        list(release.run_until(job, until(2, 1)))
    if kind == "file":
        (tmp_path / "items.csv").write_text("item_id,genre\na,fruit\nd,root\n")
    else:
        topics.send(broker, items, [topics.item("b", None), topics.item("c", None), topics.item("d")])
    list(release.run_until(job, until(3, 1)))
    assert [charge["window_start"][8:10] for charge in charges(job)] == ["01", "02"]
    assert len(published(job)) == 2
    assert [found[("d", "view")] for found in figures(job)] == [(3, 3), (3, 3)]
    contract.verify(job, None)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([{"key": b"a", "value": b"secret"}], "offset 3 of .*.items/0, the catalogue's topic, can't be used: it is not JSON"),
        ([topics.item(each, None) for each in "abc"], "Catalogue topic .*.items: .* there are no items in it"),
        ([{"key": b"a", "value": b'{"genre": 7}'}], "the values of 'genre' are of several kinds"),
    ],
)
def test_a_bad_catalogue_stops_the_job_unspent(broker, tmp_path, sent, message):
    job, _, _, items = write_job(tmp_path, broker, *DAYS)
    topics.send(broker, items, sent)
    with pytest.raises(errors.BadInputError, match=message):
        list(release.run_until(job, until(2, 1)))
    assert charges(job) == []


def test_the_topic_is_made_compacted_and_must_be_there(broker, tmp_path, capsys):
    path, topic = topics.write_job(tmp_path, broker)
    items = topics.move_items(path, topic)
    example.load(path, *DAYS)
    assert cli.main(["release", str(path), "--until", "2025-01-02T01:00", *DAYS]) == errors.BadInputError.exit_code
    assert cli.main(["kafka", "init", str(path)]) == 0
    assert kafka_client.topic_settings(topics.connection(broker), items)["cleanup.policy"] == "compact"
