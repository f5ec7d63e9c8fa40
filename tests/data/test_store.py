import json
import os
import pathlib
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import errors, files, store

SCHEMA = pa.schema([("item_id", pa.string()), ("value", pa.float64())])


@pytest.fixture
def kept(tmp_path) -> store.Store:
    return store.Store(tmp_path / "store")


@pytest.fixture(params=["path", "object store"])
def anywhere(request, tmp_path) -> store.Store:
    return store.Store(tmp_path / "store" if request.param == "path" else request.getfixturevalue("bucket"))


def write_part(kept: store.Store, attempt: str, name: str, *item_ids: str) -> str:
    return kept.write_part(attempt, name, pa.table({"item_id": item_ids, "value": [1.0] * len(item_ids)}))


def named(release_id: str, attempt: str = "", status: str = "published") -> dict:
    """A release as the ledger tells of it."""
    return {"release_id": release_id, "attempt": attempt or f"try-{release_id}", "status": status}


def release(kept: store.Store, release_id: str, *item_ids: str) -> None:
    attempt = f"try-{release_id}"
    part = write_part(kept, attempt, "items", *item_ids)
    kept.finish(attempt, {"release_id": release_id, "parts": [part]})
    kept.show(release_id, attempt)


def test_a_new_store_is_empty_and_reading_it_writes_nothing(anywhere):
    anywhere.check([])
    assert (anywhere.published([named("a")]), anywhere.latest_model(), anywhere.run_records()) == ([], None, {})
    assert files.names(anywhere.place) == []


def test_a_release_is_seen_whole_from_the_moment_it_is_shown(anywhere):
    manifest = {"release_id": "a", "parts": [write_part(anywhere, "try", "items", "x")]}
    anywhere.finish("try", manifest)
    assert anywhere.published([named("a")]) == []
    anywhere.show("a", "try")
    assert anywhere.release_ids() == {"a"}
    [found] = anywhere.published([named("a")])
    assert found == {**manifest, "attempt": "try"}
    assert anywhere.read_table(found, "items", SCHEMA).to_pylist() == [{"item_id": "x", "value": 1.0}]


def test_published_releases_come_in_the_ledgers_order(kept):
    for release_id in "abc":
        release(kept, release_id)
    assert [manifest["release_id"] for manifest in kept.published([named(name) for name in "bca"])] == ["b", "c", "a"]


@pytest.mark.parametrize("ledger", [[], [named("a", status="reserved")]], ids=["unknown", "reserved"])
def test_a_release_that_the_ledger_does_not_call_published_is_refused_and_not_read(anywhere, ledger):
    release(anywhere, "a", "x")
    assert anywhere.published(ledger) == []
    with pytest.raises(errors.BadInputError, match=r"1 release\(s\) there are not in the ledger"):
        anywhere.check(ledger)


def test_parts_that_the_manifest_does_not_name_are_gone(anywhere):
    """They may hold a second draw of noise."""
    write_part(anywhere, "try", "items", "left by a retry")
    parts = [write_part(anywhere, "try", "items", name) for name in ("1", "2")]
    other = write_part(anywhere, "try", "items_of_another_table", "wrong")
    anywhere.finish("try", {"release_id": "a", "parts": [*parts, other]})
    anywhere.show("a", "try")
    [manifest] = anywhere.published([named("a", "try")])
    assert anywhere.read_table(manifest, "items", SCHEMA)["item_id"].to_pylist() == ["1", "2"]
    assert files.names(files.join(anywhere.place, "attempts", "try")) == sorted([*parts, other, "manifest.json"])


def test_showing_again_changes_nothing(kept):
    release(kept, "a", "x")
    write_part(kept, "slower", "items", "y")
    kept.show("a", "slower")
    assert kept.published([named("a")])[0]["attempt"] == "try-a"


def test_what_a_crash_left_is_shown_where_the_ledger_names_it_and_deleted_elsewhere(anywhere):
    for attempt in ("try-a", "loser"):
        part = write_part(anywhere, attempt, "items", attempt)
        anywhere.finish(attempt, {"release_id": "a", "parts": [part]})
    write_part(anywhere, "try-b", "items", "x")
    anywhere.settle([named("a"), named("b", status="reserved")])
    assert (anywhere.release_ids(), anywhere.attempts()) == ({"a"}, {"try-a"})
    [manifest] = anywhere.published([named("a")])
    assert anywhere.read_table(manifest, "items", SCHEMA)["item_id"].to_pylist() == ["try-a"]


def test_a_discarded_attempt_is_gone(anywhere):
    write_part(anywhere, "try", "items", "x")
    anywhere.discard("try")
    anywhere.discard("never there")
    assert anywhere.attempts() == set()


def test_an_attempt_is_for_the_owner_alone_until_it_is_shown(kept):
    write_part(kept, "try", "items", "x")
    release(kept, "a", "x")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in sorted(pathlib.Path(kept.place, "attempts").iterdir())]
    assert modes == [0o700, 0o755]


def test_a_release_of_an_earlier_version_is_read_where_it_lies(kept):
    folder = pathlib.Path(kept.place, "releases", "a")
    (folder / "items").mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["x"], "value": [1.0]}), folder / "items" / "1.parquet")
    store.write_json(folder / "manifest.json", {"release_id": "a", "parts": ["items/1.parquet"]})
    (folder.parent / ".left-by-a-crash" / "items").mkdir(parents=True)
    kept.check([named("a")])
    kept.settle([named("a")])
    [manifest] = kept.published([named("a")])
    assert kept.read_table(manifest, "items", SCHEMA)["item_id"].to_pylist() == ["x"]


def test_a_store_that_cannot_be_a_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadInputError, match=r"job\.store = .*file: can't be a directory"):
        store.Store(tmp_path / "file").make()


def test_one_release_job_at_a_time_runs_in_a_store(anywhere):
    with anywhere.running(), pytest.raises(errors.AlreadyReleasedError, match="another release job is running"):
        anywhere.running().__enter__()
    with anywhere.running() as again:
        assert again is anywhere


def test_each_object_store_has_a_directory_of_its_own_here():
    places = [store.Store(place).local() for place in ("s3://bucket/a", "s3://bucket/a/b", "s3://bucket/a-b")]
    assert len(set(places)) == 3
    assert [place.name.rpartition("-")[0] for place in places] == ["bucket-a", "bucket-a-b", "bucket-a-b"]


def test_a_table_without_parts_is_empty(kept):
    assert kept.read_table({"attempt": "a", "parts": []}, "items", SCHEMA) == SCHEMA.empty_table()


def test_parts_are_cast_to_the_asked_schema(kept):
    release(kept, "a", "x")
    wanted = pa.schema([("item_id", pa.large_string()), ("value", pa.float32())])
    assert kept.read_table(kept.published([named("a")])[0], "items", wanted) == pa.table(
        {"item_id": ["x"], "value": [1.0]}
    ).cast(wanted)


def test_models_are_numbered_and_the_newest_is_read(anywhere):
    tables = {"embeddings": pa.table({"item_id": ["x"]})}
    store.write_json(files.join(anywhere.place, "models", "9", "manifest.json"), {"n": 9})  # by an earlier version
    for number in (10, 11):
        assert anywhere.add_model(tables, {"n": number}).number == number
    newest = anywhere.latest_model()
    assert (newest.number, newest.manifest) == (11, {"n": 11})
    assert newest.read_table("embeddings", pa.schema([("item_id", pa.string())])).to_pylist() == [{"item_id": "x"}]


def test_the_newest_models_come_newest_first_and_each_table_has_a_digest(anywhere):
    for value in (1.0, 1.0, 2.0):
        anywhere.add_model({"embeddings": pa.table({"value": [value]})}, {})
    assert [model.number for model in anywhere.models(2)] == [3, 2]
    assert anywhere.models(9)[0] == anywhere.latest_model()
    newest, second, first = (model.digest("embeddings") for model in anywhere.models(9))
    assert (first == second, second == newest) == (True, False)


def test_a_removed_model_leaves_its_number_unused(anywhere):
    second = [anywhere.add_model({}, {}) for _ in range(3)][1]
    files.delete_directory(second.place)
    assert anywhere.add_model({}, {}).number == 4


def test_a_model_that_cannot_be_written_is_none(kept):
    with pytest.raises(TypeError):
        kept.add_model({"embeddings": pa.table({"item_id": ["x"]})}, {"n": object()})
    assert kept.latest_model() is None
    assert kept.add_model({}, {}) == kept.latest_model()


def test_only_the_owner_may_enter_the_operators_corner(kept):
    old = os.umask(0)
    try:
        corner = pathlib.Path(kept.place, "operator")
        corner.mkdir(parents=True, mode=0o755)
        for path in (kept.operator("dead_letters"), kept.operator("runs"), corner):
            assert stat.S_IMODE(pathlib.Path(path).stat().st_mode) == 0o700
    finally:
        os.umask(old)


def test_run_records_are_kept_in_the_operators_corner(anywhere):
    anywhere.write_run_record("a", {"outcomes": {"ok": 1}})
    anywhere.add_to_run_record("a", {"more": 2})
    assert anywhere.run_record("a") == {"outcomes": {"ok": 1}, "more": 2}
    assert anywhere.run_records() == {"a": anywhere.find_run_record("a")}
    assert anywhere.find_run_record("b") is None
    assert files.names(anywhere.place) == ["operator/runs/a.json"]


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, [1])
    store.write_json(path, [2])
    with pytest.raises(TypeError):
        store.write_json(path, [object()])
    assert json.loads(path.read_text()) == [2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_ids_are_random():
    assert len({store.new_id() for _ in range(100)}) == 100


def test_what_waits_on_disk_is_for_the_owner_alone_and_goes_with_the_run(kept):
    with kept.spill() as place:
        directory = pathlib.Path(place)
        (directory / "rows").touch()
        assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert not directory.exists()


def test_what_a_killed_run_left_goes_with_the_next(anywhere):
    left = files.join(anywhere.operator("spill", "killed"), "rows")
    files.write(left, b"")
    with anywhere.spill():
        assert not files.exists(left)
