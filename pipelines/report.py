"""`sottovoce report`: one HTML page about the published side, for whoever answers for the users' privacy.

It reads the published database and nothing else: whatever it says, everybody with the database could find out. How long things
took and exact numbers of rows are the operator's (`sottovoce status`), and not here.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from data import database
from models import rerank
from models.ranking import NO_ITEM
from pipelines import page

TOP_COUNTS = 20
"""Of the counts, the largest."""
LAST_RELEASES = 20
"""Of the releases, the newest."""
SHOWN_CATEGORIES = 15

log = logging.getLogger(__name__)

_GLOSSARY = {
    "Differential privacy": "A promise about a method, not about a table: whether or not one user was in the data, with "
    "everything that user did, what is published would look nearly the same.",
    "Epsilon": "How nearly. At epsilon e no conclusion about a user becomes more than exp(e) times as likely, or as unlikely, "
    "through what is published. Below 1 is strong; above 10 says little.",
    "Delta": "The probability with which that factor may be exceeded. It should be far below 1 / number of users.",
    "Unit and period": "What is protected as a whole: all that one user did within one period. Losses add up over periods.",
    "Mechanism": "A computation that gets noise: item scores (selection), numbers of users and events (counts.users, "
    "counts.events), and how often items meet (cooccurrence).",
    "Noise": "Random numbers added before anybody sees the result; the standard deviation says how large they are.",
    "95 % interval": "In 95 of 100 cases the value before the noise lies in it. It is the value of bounded contributions: what "
    "one user may add is limited before anything is counted.",
    "Kept items": "Those for which it was also released how often they meet others.",
    "Gini": "How unevenly items are shown: 0 is all alike, near 1 a few items alone.",
    "Long tail": "All items but the most popular ones that together have a third of the released scores.",
}


def run(store: Path, output: Path) -> None:
    """Writes the page about a store's current database.

    Raises:
        database.NothingPublishedError: nothing is published yet.
        errors.BadRequestError: `output` is there already.
    """
    page.check_free(output)
    with database.connect(store) as connection:
        output.write_bytes(make(connection))
    log.info("wrote %s", output)


def make(connection: duckdb.DuckDBPyConnection) -> bytes:
    """Returns the page about a published database, in UTF-8."""
    data_sets = [name for (name,) in connection.sql("select distinct data_set from privacy_ledger order by 1").fetchall()]
    return page.document(
        f"Privacy report: {', '.join(data_sets) or 'nothing released'}",
        page.paragraph(
            "Made from the published database alone: everything here may be seen by everybody who may see the database. Exact "
            "figures and run times are the operator's, and not in it.",
            kind="note",
        ),
        _promise(connection),
        _budget(connection),
        _releases(connection),
        _mechanisms(connection),
        _counts(connection),
        _items(connection),
        _model(connection),
        _quality(connection),
        _diversity(connection),
        _columns(connection),
        page.section("Glossary", page.terms(_GLOSSARY)),
    )


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.sql(sql).fetchall()


def _promise(connection: duckdb.DuckDBPyConnection) -> page.Element:
    said = [
        page.paragraph(
            f"Data set {data_set}: protected is one {unit} with everything it did in one period ({period}). All that is "
            f"published of a period, together, costs at most epsilon {epsilon:g} and delta {delta:g}. Whoever sees it, "
            f"whatever else they know, can conclude hardly more about any one {unit} than if it had not been in the data: no "
            f"such conclusion becomes more than {_factor(epsilon)} times as likely or unlikely, except with probability "
            f"{delta:g}."
        )
        for data_set, unit, period, epsilon, delta in _rows(
            connection,
            """
            select distinct p.data_set, p.unit, l.period, p.total_epsilon, p.total_delta
            from privacy_periods as p join (select distinct data_set, period from privacy_ledger) as l using (data_set)
            order by 1
            """,
        )
    ]
    if not said:
        said = [page.paragraph("Nothing was released, so nothing is promised.")]
    return page.section(
        "What is promised",
        *said,
        page.paragraph("Not protected: the catalogue of items, which is public by declaration, and what the operator sees."),
        page.paragraph("Losses add up over periods, and over data sets that have the same users.", kind="warning"),
    )


def _factor(epsilon: float) -> str:
    return f"exp({epsilon:g}) = {page.shown(math.exp(epsilon))}" if epsilon < 20 else f"exp({epsilon:g}), which is no limit,"


def _budget(connection: duckdb.DuckDBPyConnection) -> page.Element:
    periods = _rows(
        connection,
        """
        select data_set, period, releases, spent_epsilon, spent_delta, total_epsilon, total_delta
        from privacy_periods order by data_set, period desc
        """,
    )
    rows = [
        [
            data_set,
            period,
            releases,
            spent,
            total,
            page.bar(spent / total, f"{spent / total:.0%} of epsilon"),
            spent_delta,
            delta,
        ]
        for data_set, period, releases, spent, spent_delta, total, delta in periods
    ]
    head = ["data set", "period", "releases", "epsilon spent", "allowed", "", "delta spent", "allowed"]
    return page.section(
        "What it cost, and what is left",
        page.paragraph("By period, all releases together; a release that was charged and never published is in it."),
        page.table(head, rows),
        page.paragraph(
            "What is left is not the difference: costs add up as squares, so two releases of epsilon 1 cost less than 2. "
            "`sottovoce budget show` says how many windows there is room for.",
            kind="note",
        ),
    )


def _releases(connection: duckdb.DuckDBPyConnection) -> page.Element:
    rows = _rows(
        connection,
        """
        select created::date::varchar, window_start::varchar, window_end::varchar, data_set,
            any_value(total_epsilon), any_value(total_delta), string_agg(mechanism, ', ' order by mechanism),
            case when release_id in (select release_id from release_report) then 'yes' else 'no' end, release_id
        from privacy_ledger group by release_id, created, window_start, window_end, data_set
        order by window_end desc, created desc, release_id
        """,
    )
    head = ["released", "from", "to (not included)", "data set", "epsilon", "delta", "what", "shown here", "release"]
    note = f"The newest {LAST_RELEASES} of {len(rows)}." if len(rows) > LAST_RELEASES else f"{len(rows)} in all."
    text = _rows(
        connection,
        "select release_id, section, string_agg(text, '\n' order by line) from release_report group by all order by 1, 2",
    )
    return page.section(
        "What was released, and when",
        page.paragraph(f"Each line read the events of one window of time, in UTC, and was charged once. {note}"),
        page.table(head, rows[:LAST_RELEASES]),
        page.folded(
            "How the figures of the releases shown here were made",
            page.table(["release", "part", "how"], [[release, part, _lines(how)] for release, part, how in text]),
        ),
    )


def _lines(text: str) -> page.Element:
    parts: list[page.Child] = []
    for line in text.split("\n"):
        parts += [line, page.element("br")]
    return page.element("span", *parts[:-1])


def _mechanisms(connection: duckdb.DuckDBPyConnection) -> page.Element:
    rows = _rows(
        connection,
        """
        select release_id, mechanism, noise_kind, l2_sensitivity, noise_sd, delta,
            (1 / noise_multiplier ** 2) / sum(1 / noise_multiplier ** 2) over (partition by release_id)
        from privacy_ledger where release_id in (select release_id from release_report) order by 1, 2
        """,
    )
    shown = [[*row[:-1], page.bar(row[-1], f"{row[-1]:.1%}"), f"{row[-1]:.1%}"] for row in rows]
    return page.section(
        "What each mechanism cost",
        page.paragraph(
            "Of the releases whose figures are shown here. The share is of 1/sigma², which is what adds up: with twice the "
            "share the noise is smaller by a factor of 1.4."
        ),
        page.table(["release", "mechanism", "noise", "most one user changes (L2)", "noise sd", "delta", "share", ""], shown),
    )


def _counts(connection: duckdb.DuckDBPyConnection) -> page.Element:
    counted = "(from item_counts where window_end = (select max(window_end) from item_counts))"
    (total, clear, first, last) = _rows(
        connection,
        f"""
        select count(*), count(*) filter (where users_low > 0), min(window_start)::varchar, max(window_end)::varchar
        from {counted}
        """,
    )[0]
    if not total:
        return page.section("Counts", page.paragraph("No counts are published."))
    rows = _rows(
        connection,
        f"""
        select coalesce(title, item_id), event_type, users, users_low, users_high, events, events_low, events_high
        from {counted} left join items using (item_id) order by users desc, item_id, event_type limit {TOP_COUNTS}
        """,
    )
    ends = (min(0.0, *(row[3] for row in rows)), max(row[4] for row in rows))
    shown = [
        [
            title,
            kind,
            users,
            page.interval(low, users, high, ends, f"{page.shown(low)} to {page.shown(high)}"),
            f"{page.shown(low)} .. {page.shown(high)}",
            _judged(low, users, high),
            events,
            f"{page.shown(events_low)} .. {page.shown(events_high)}",
        ]
        for title, kind, users, low, high, events, events_low, events_high in rows
    ]
    [(trending,)] = _rows(connection, "select count(distinct window_end) from trending_counts")
    return page.section(
        "Counts",
        page.paragraph(
            f"Numbers of users and events by item and kind of event, from {first} to {last} (UTC): of each user's "
            f"contributions a limited number counts, then noise is added. Of {total:,} numbers of users {clear:,} are above 0 "
            f"by their 95 % interval (as is one in 40 of those that are 0); the other {total - clear:,} are too noisy to tell. "
            f"The largest {len(rows)}:"
        ),
        page.table(["item", "event", "users", "", "95 % interval", "how sure", "events", "95 % interval"], shown),
        page.paragraph(
            "The largest of many noisy numbers are on average a little too large: they are there because their noise was high.",
            kind="note",
        ),
        *([page.paragraph(f"Beside them there are counts of {trending} short windows (trending_counts).")] if trending else []),
    )


def _judged(low: float, middle: float, high: float) -> str:
    if low <= 0:
        return "too noisy to tell"
    return f"to {(high - low) / 2 / middle:.0%}" if middle > 0 else "too noisy to tell"


def _items(connection: duckdb.DuckDBPyConnection) -> page.Element:
    [(total, scored, kept)] = _rows(connection, "select count(*), count(score), count(*) filter (where kept) from items")
    return page.section(
        "Items",
        page.table(
            ["items", "number"],
            [
                ["in the database", total],
                ["with a released score", scored],
                ["kept for the co-occurrence matrix, from which the model learns tastes", kept],
            ],
        ),
        page.paragraph("More noise keeps fewer items; how many follows from noisy figures and public ones alone.", kind="note"),
    )


def _model(connection: duckdb.DuckDBPyConnection) -> page.Element:
    found = connection.sql("from model_versions")
    rows = found.fetchall()
    if not rows:
        return page.section("The model", page.paragraph("No model is published: counts alone."))
    values = dict(zip(found.columns, rows[0], strict=True))
    parameters = json.loads(values.pop("parameters"))
    return page.section(
        "The model",
        page.paragraph(
            "Trained on the releases named here and on the public catalogue, never on events: it costs nothing more."
        ),
        page.table(["model", ""], [[name, _text(value)] for name, value in values.items()]),
        page.folded("All its parameters", page.table(["parameter", "value"], [[k, _text(v)] for k, v in parameters.items()])),
    )


def _text(value: Any) -> str:
    return (
        json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def _quality(connection: duckdb.DuckDBPyConnection) -> page.Element:
    """The table `evaluations`, whatever its columns, if there is one: what a charged evaluation has released."""
    there = _rows(connection, "select 1 from duckdb_tables() where table_name = 'evaluations'")
    found = connection.sql("from evaluations") if there else None
    rows = [] if found is None else found.fetchall()
    if found is None or not rows:
        return page.section(
            "Quality",
            page.paragraph(
                "No evaluation is published: on private data it is a query that has to be released with noise and charged, and "
                "none was paid for ([evaluation] budget_share). `sottovoce tune` estimates quality from what is published "
                "already, at no cost."
            ),
        )
    shown = [[value if isinstance(value, int | float | None) else _text(value) for value in row] for row in rows]
    return page.section("Quality", page.paragraph("Released with noise, and charged:"), page.table(found.columns, shown))


def _diversity(connection: duckdb.DuckDBPyConnection) -> page.Element:
    ids = [item for (item,) in _rows(connection, "select item_id from items order by 1")]
    shown = connection.sql("select item_id, recommended_item_id from recommendations order by item_id, rank").fetchall()
    if not shown:
        return page.section("Diversity of recommendations", page.paragraph("There are no recommendations."))
    place = {item: number for number, item in enumerate(ids)}
    of_item: dict[str, list[int]] = {}
    for item, other in shown:
        of_item.setdefault(item, []).append(place[other])
    longest = max(map(len, of_item.values()))
    lists = np.array([found + [NO_ITEM] * (longest - len(found)) for found in of_item.values()])
    items = _described(connection, ids)
    audit = rerank.audit(lists, items)
    figures: list[list[str | float]] = [
        ["lists, one an item", len(lists)],
        ["recommendations in the longest", longest],
        ["items that are shown anywhere", len(np.unique(lists[lists != NO_ITEM]))],
        ["Gini of how often items are shown", audit.gini],
        ["share of places with an item of the long tail", audit.tail_share],
        ["intra-list diversity (mean of 1 - cosine of embeddings)", audit.diversity],
    ]
    largest = sorted(zip(items.names, audit.category_shares.tolist(), strict=True), key=lambda each: -each[1])[
        :SHOWN_CATEGORIES
    ]
    return page.section(
        "Diversity of recommendations",
        page.paragraph("Of the published lists, from the published tables."),
        page.table(["figure", "value"], figures),
        *(
            [
                page.table(
                    ["category", "share of places", ""],
                    [[name, share, page.bar(share, f"{share:.1%}")] for name, share in largest],
                )
            ]
            if largest
            else []
        ),
    )


def _described(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> rerank.Items:
    """What the database says of items; their category is the first feature that has kinds of things, of lists the first one."""
    vectors = dict(_rows(connection, "select item_id, embedding::FLOAT[] from item_embeddings"))
    length = len(next(iter(vectors.values()), [0.0]))
    embeddings = np.array([vectors.get(item, [0.0] * length) for item in ids], np.float32)
    scores = dict(_rows(connection, "select item_id, coalesce(score, 0) from items"))
    items = rerank.describe(ids, embeddings, np.array([scores[item] for item in ids]), None, rerank.Settings())
    features = _rows(
        connection,
        """
        select column_name from duckdb_columns() where table_name = 'items'
            and comment similar to 'Public feature of the catalogue \\((categorical|multi)\\).' order by column_index limit 1
        """,
    )
    if not features:
        return items
    name = '"' + features[0][0].replace('"', '""') + '"'
    values = dict(_rows(connection, f"select item_id, {name} from items"))
    numbers: dict[str, int] = {}
    categories = np.full(len(ids), rerank.NO_CATEGORY, np.int64)
    for row, item in enumerate(ids):
        value = values[item]
        value = value[0] if isinstance(value, list) and value else value
        if value:
            categories[row] = numbers.setdefault(str(value), len(numbers))
    return items._replace(categories=categories, names=tuple(numbers))


def _columns(connection: duckdb.DuckDBPyConnection) -> page.Element:
    rows = _rows(
        connection,
        """
        select table_name, column_name, coalesce(comment, '') from duckdb_columns() where not internal
        order by table_name, column_index
        """,
    )
    tables = _rows(connection, "select table_name, coalesce(comment, '') from duckdb_tables() order by 1")
    return page.section(
        "What is in the database",
        page.table(["table", "what it says"], tables),
        page.folded("Every column", page.table(["table", "column", "what it says"], rows)),
    )


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("report")
