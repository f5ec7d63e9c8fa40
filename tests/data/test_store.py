import json
import os
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import errors, store

SCHEMA = pa.schema([("item_id", pa.string()), ("value", pa.float64())])


@pytest.fixture
def kept(tmp_path) -> store.Store:
    return store.Store(tmp_path / "store")


def write_part(kept: store.Store, attempt: str, part: str, *item_ids: str) -> str:
    path = kept.attempt(attempt) / part
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"item_id": item_ids, "value": [1.0] * len(item_ids)}), path)
    return part


def named(release_id: str, attempt: str = "", status: str = "published") -> dict:
    """A release as the ledger tells of it."""
    return {"release_id": release_id, "attempt": attempt or f"try-{release_id}", "status": status}


def release(kept: store.Store, release_id: str, *item_ids: str) -> None:
    attempt = f"try-{release_id}"
    part = write_part(kept, attempt, "items/a.parquet", *item_ids)
    kept.finish(attempt, {"release_id": release_id, "parts": [part]})
    kept.show(release_id, attempt)


def test_a_new_store_is_empty_and_reading_it_writes_nothing(kept):
    kept.check([])
    assert (kept.published([named("a")]), kept.latest_model()) == ([], None)
    assert not kept.path.exists()


def test_a_release_is_seen_whole_from_the_moment_it_is_shown(kept):
    part = write_part(kept, "try", "items/one.parquet", "x")
    manifest = {"release_id": "a", "parts": [part]}
    kept.finish("try", manifest)
    assert kept.published([named("a")]) == []
    assert kept.show("a", "try") == kept.release_path("a")
    assert kept.published([named("a")]) == [manifest]
    assert kept.read_table(manifest, "items", SCHEMA).to_pylist() == [{"item_id": "x", "value": 1.0}]


def test_published_releases_come_in_the_ledgers_order(kept):
    for release_id in "abc":
        release(kept, release_id)
    assert [manifest["release_id"] for manifest in kept.published([named(name) for name in "bca"])] == ["b", "c", "a"]


@pytest.mark.parametrize("ledger", [[], [named("a", status="reserved")]], ids=["unknown", "reserved"])
def test_a_release_that_the_ledger_does_not_call_published_is_refused_and_not_read(kept, ledger):
    release(kept, "a", "x")
    assert kept.published(ledger) == []
    with pytest.raises(errors.BadInputError, match=r"1 release\(s\) there are not in the ledger"):
        kept.check(ledger)


def test_parts_that_the_manifest_does_not_name_are_gone(kept):
    """They may hold a second draw of noise."""
    write_part(kept, "try", "items/left-by-a-retry.parquet", "wrong")
    parts = [write_part(kept, "try", f"items/{name}.parquet", name) for name in ("1", "2")]
    other = write_part(kept, "try", "items_of_another_table/1.parquet", "wrong")
    manifest = {"release_id": "a", "parts": [*parts, other]}
    kept.finish("try", manifest)
    kept.show("a", "try")
    assert kept.read_table(manifest, "items", SCHEMA)["item_id"].to_pylist() == ["1", "2"]
    assert sorted(path.name for path in (kept.release_path("a") / "items").iterdir()) == ["1.parquet", "2.parquet"]


def test_showing_again_changes_nothing(kept):
    release(kept, "a", "x")
    kept.attempt("slower")
    assert kept.show("a", "slower") == kept.release_path("a")
    assert kept.published([named("a")])[0]["parts"] == ["items/a.parquet"]


def test_what_a_crash_left_is_shown_where_the_ledger_names_it_and_deleted_elsewhere(kept):
    for attempt in ("try-a", "loser"):
        part = write_part(kept, attempt, "items/a.parquet", attempt)
        kept.finish(attempt, {"release_id": "a", "parts": [part]})
    write_part(kept, "try-b", "items/half.parquet", "x")
    kept.settle([named("a"), named("b", status="reserved")])
    assert [path.name for path in (kept.path / "releases").iterdir()] == ["a"]
    [manifest] = kept.published([named("a")])
    assert kept.read_table(manifest, "items", SCHEMA)["item_id"].to_pylist() == ["try-a"]


def test_a_discarded_attempt_is_gone(kept):
    write_part(kept, "try", "items/a.parquet", "x")
    kept.discard("try")
    kept.discard("never there")
    assert list((kept.path / "releases").iterdir()) == []


def test_an_attempt_is_for_the_owner_alone_until_it_is_shown(kept):
    assert stat.S_IMODE(kept.attempt("try").stat().st_mode) == 0o700
    release(kept, "a", "x")
    assert stat.S_IMODE(kept.release_path("a").stat().st_mode) == 0o755


def test_a_store_that_cannot_be_a_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.BadInputError, match=r"job\.store = .*file: can't be a directory"):
        store.Store(tmp_path / "file").make()


def test_one_release_job_at_a_time_runs_in_a_store(kept):
    with kept.running(), pytest.raises(errors.AlreadyReleasedError, match="another release job is running"):
        kept.running().__enter__()
    with kept.running() as again:
        assert again is kept


def test_a_table_without_parts_is_empty(kept):
    assert kept.read_table({"release_id": "a", "parts": []}, "items", SCHEMA) == SCHEMA.empty_table()


def test_parts_are_cast_to_the_asked_schema(kept):
    release(kept, "a", "x")
    wanted = pa.schema([("item_id", pa.large_string()), ("value", pa.float32())])
    assert kept.read_table(kept.published([named("a")])[0], "items", wanted) == pa.table(
        {"item_id": ["x"], "value": [1.0]}
    ).cast(wanted)


def test_an_attempt_keeps_what_it_has(kept):
    write_part(kept, "try", "items/a.parquet", "x")
    assert [path.name for path in kept.attempt("try").iterdir()] == ["items"]


def test_models_are_numbered_and_the_newest_is_read(kept):
    tables = {"embeddings": pa.table({"item_id": ["x"]})}
    for number in range(1, 12):
        assert kept.add_model(tables, {"n": number}) == kept.path / "models" / str(number)
    assert kept.latest_model() == kept.path / "models" / "11"
    assert pq.read_table(kept.latest_model() / "embeddings.parquet").to_pylist() == [{"item_id": "x"}]
    assert json.loads((kept.latest_model() / "manifest.json").read_text()) == {"n": 11}


def test_a_removed_model_leaves_its_number_unused(kept):
    for _ in range(3):
        kept.add_model({}, {})
    (kept.path / "models" / "2" / "manifest.json").unlink()
    (kept.path / "models" / "2").rmdir()
    assert kept.add_model({}, {}).name == "4"


def test_a_model_that_cannot_be_written_leaves_nothing(kept):
    with pytest.raises(TypeError):
        kept.add_model({}, {"n": object()})
    assert list((kept.path / "models").iterdir()) == []


def test_leftovers_of_a_crash_do_not_matter(kept):
    release(kept, "a", "x")
    kept.add_model({}, {})
    write_part(kept, "b", "items/half.parquet", "wrong")
    (kept.path / "models" / ".leftover" / "model").mkdir(parents=True)
    assert [manifest["release_id"] for manifest in kept.published([named("a")])] == ["a"]
    assert kept.add_model({}, {}) == kept.latest_model() == kept.path / "models" / "2"


def test_only_the_owner_may_enter_the_operators_corner(kept):
    old = os.umask(0)
    try:
        (kept.path / "operator").mkdir(parents=True, mode=0o755)
        for path in (kept.operator("dead_letters"), kept.operator("runs")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
    finally:
        os.umask(old)
    assert stat.S_IMODE((kept.path / "operator").stat().st_mode) == 0o700


def test_run_records_are_kept_in_the_operators_corner(kept):
    kept.write_run_record("a", {"outcomes": {"ok": 1}})
    assert kept.run_record("a") == {"outcomes": {"ok": 1}}
    assert [str(path.relative_to(kept.path)) for path in kept.path.rglob("*.json")] == ["operator/runs/a.json"]


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
    with kept.spill() as directory:
        (directory / "rows").touch()
        assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert not directory.exists()


def test_what_a_killed_run_left_on_disk_goes_with_the_next(kept):
    left = kept.operator("spill", "killed")
    (left / "rows").touch()
    with kept.spill():
        assert not left.exists()
