import json
import multiprocessing
import os
import pathlib
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import errors, store

CHARGE = {"data_set": "d", "total_epsilon": 1.0}
SCHEMA = pa.schema([("item_id", pa.string()), ("value", pa.float64())])


@pytest.fixture
def kept(tmp_path) -> store.Store:
    return store.Store(tmp_path / "store")


def write_part(kept: store.Store, release_id: str, part: str, *item_ids: str) -> str:
    path = kept.attempt(release_id, "try") / part
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"item_id": item_ids, "value": [1.0] * len(item_ids)}), path)
    return part


def release(kept: store.Store, release_id: str, *item_ids: str) -> None:
    kept.reserve(release_id, CHARGE, allow_another=True)
    kept.commit(
        release_id, "try", {"release_id": release_id, "parts": [write_part(kept, release_id, "items/a.parquet", *item_ids)]}
    )


def test_a_new_store_is_empty_and_reading_it_writes_nothing(kept):
    assert (kept.ledger(), kept.published(), kept.latest_model(), kept.abandoned(CHARGE)) == ([], [], None, None)
    assert not kept.path.exists()


def test_a_reservation_is_written_before_anything_is_published(kept):
    kept.reserve("a", CHARGE, allow_another=False)
    assert kept.ledger() == [{"release_id": "a", "status": "reserved", **CHARGE}]
    assert kept.published() == []


@pytest.mark.parametrize("allow_another", [False, True])
def test_reserving_the_same_release_again_changes_nothing(kept, allow_another):
    kept.reserve("a", CHARGE, allow_another=False)
    kept.reserve("a", {"data_set": "other"}, allow_another)
    assert kept.ledger() == [{"release_id": "a", "status": "reserved", **CHARGE}]


def test_a_second_release_is_refused_even_if_the_first_was_never_published(kept):
    kept.reserve("a", CHARGE, allow_another=False)
    with pytest.raises(errors.AlreadyReleasedError, match=r"store .* 1 release\(s\) already.*--new-release"):
        kept.reserve("b", CHARGE, allow_another=False)
    assert [entry["release_id"] for entry in kept.ledger()] == ["a"]


def test_a_second_release_may_be_allowed(kept):
    kept.reserve("a", CHARGE, allow_another=False)
    kept.reserve("b", CHARGE, allow_another=True)
    assert [entry["release_id"] for entry in kept.ledger()] == ["a", "b"]


def test_a_release_is_seen_whole_from_its_commit_on(kept):
    kept.reserve("a", CHARGE, allow_another=False)
    part = write_part(kept, "a", "items/one.parquet", "x")
    assert kept.published() == []
    manifest = {"release_id": "a", "parts": [part]}
    assert kept.commit("a", "try", manifest) == kept.release_path("a")
    assert kept.published() == [manifest]
    assert kept.ledger() == [{"release_id": "a", "status": "published", **CHARGE}]
    assert kept.read_table(manifest, "items", SCHEMA).to_pylist() == [{"item_id": "x", "value": 1.0}]


def test_committing_one_release_leaves_the_others_reserved(kept):
    kept.reserve("a", CHARGE, allow_another=False)
    release(kept, "b", "x")
    assert [(entry["release_id"], entry["status"]) for entry in kept.ledger()] == [("a", "reserved"), ("b", "published")]


def test_published_releases_come_in_the_ledgers_order(kept):
    for release_id in ("b", "c", "a"):
        release(kept, release_id)
    assert [manifest["release_id"] for manifest in kept.published()] == ["b", "c", "a"]


def test_a_release_that_the_ledger_does_not_know_is_not_published(kept):
    kept.commit("a", "try", {"release_id": "a", "parts": []})
    assert kept.published() == []


def test_a_retried_commit_finishes_what_a_crash_left(kept):
    release(kept, "a", "x")
    [manifest] = kept.published()
    kept._write_ledger([{"release_id": "a", "status": "reserved", **CHARGE}])  # The crash came before this was replaced.
    assert kept.commit("a", "try", manifest) == kept.release_path("a")
    assert kept.ledger() == [{"release_id": "a", "status": "published", **CHARGE}]


def test_parts_that_the_manifest_does_not_name_are_gone(kept):
    """They may hold a second draw of noise."""
    write_part(kept, "a", "items/left-by-a-retry.parquet", "wrong")
    parts = [write_part(kept, "a", f"items/{name}.parquet", name) for name in ("1", "2")]
    other = write_part(kept, "a", "items_of_another_table/1.parquet", "wrong")
    manifest = {"release_id": "a", "parts": [*parts, other]}
    kept.commit("a", "try", manifest)
    assert kept.read_table(manifest, "items", SCHEMA)["item_id"].to_pylist() == ["1", "2"]
    assert sorted(path.name for path in (kept.release_path("a") / "items").iterdir()) == ["1.parquet", "2.parquet"]


def test_of_several_attempts_the_first_wins_and_the_others_are_deleted(kept):
    loser = kept.attempt("a", "slow")
    release(kept, "a", "x")
    assert not loser.exists()
    kept.attempt("a", "slower")
    kept.commit("a", "slower", {"release_id": "a", "parts": []})
    assert [path.name for path in (kept.path / "releases").iterdir()] == ["a"]
    assert kept.published()[0]["parts"] == ["items/a.parquet"]


def test_an_attempt_is_for_the_owner_alone_until_it_is_published(kept):
    assert stat.S_IMODE(kept.attempt("a", "try").stat().st_mode) == 0o700
    release(kept, "a", "x")
    assert stat.S_IMODE(kept.release_path("a").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("charge", "found"),
    [({**CHARGE, "created": "later"}, "a"), ({**CHARGE, "total_epsilon": 2.0}, None)],
    ids=["the same", "another budget"],
)
def test_an_unpublished_charge_serves_a_retry_of_the_same_job(kept, charge, found):
    kept.reserve("a", {**CHARGE, "created": "now"}, allow_another=False)
    assert kept.abandoned(charge) == found
    kept.commit("a", "try", {"release_id": "a", "parts": []})
    assert kept.abandoned(charge) is None


def test_a_store_whose_ledger_is_lost_is_refused(kept):
    release(kept, "a", "x")
    (kept.path / "privacy_ledger.json").unlink()
    with pytest.raises(errors.BadInputError, match=r"1 release\(s\) there are not in privacy_ledger\.json"):
        kept.reserve("b", CHARGE, allow_another=True)


def test_a_broken_ledger_is_named(kept):
    kept.make()
    (kept.path / "privacy_ledger.json").write_text("[{")
    with pytest.raises(errors.BadInputError, match=r"privacy_ledger\.json can't be read"):
        kept.ledger()


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
    assert kept.read_table(kept.published()[0], "items", wanted) == pa.table({"item_id": ["x"], "value": [1.0]}).cast(wanted)


def test_an_attempt_keeps_what_it_has(kept):
    write_part(kept, "a", "items/a.parquet", "x")
    assert [path.name for path in kept.attempt("a", "try").iterdir()] == ["items"]


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
    (kept.path / ".tmp-half-a-ledger").write_text('[{"release_')
    assert [manifest["release_id"] for manifest in kept.published()] == ["a"]
    assert kept.add_model({}, {}) == kept.latest_model() == kept.path / "models" / "2"
    with pytest.raises(errors.AlreadyReleasedError):
        kept.reserve("b", CHARGE, allow_another=False)


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


def _reserve(path: pathlib.Path, release_id: str, allow_another: bool, barrier, results) -> None:
    barrier.wait()
    try:
        store.Store(path).reserve(release_id, CHARGE, allow_another)
        results.put(release_id)
    except errors.AlreadyReleasedError:
        results.put(None)


def race(path: pathlib.Path, allow_another: bool) -> list[str | None]:
    """Lets processes reserve at once; returns the ids of those that could."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = [(path, str(n), allow_another, barrier, results) for n in range(4)]
    processes = [context.Process(target=_reserve, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return sorted(filter(None, (results.get(timeout=10) for _ in processes)))


def test_of_processes_that_reserve_at_once_exactly_one_wins(kept):
    [winner] = race(kept.path, allow_another=False)
    assert [entry["release_id"] for entry in kept.ledger()] == [winner]


def test_no_reservation_is_lost_when_several_are_allowed(kept):
    assert race(kept.path, allow_another=True) == ["0", "1", "2", "3"]
    assert sorted(entry["release_id"] for entry in kept.ledger()) == ["0", "1", "2", "3"]


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
