"""Makes the two Online Retail files beside this script: the invoice lines in; sample and product list out.

    python data/samples/make_online_retail.py online_retail.parquet

README.md states the rules; the queries here are those rules.
"""

import pathlib
import sys

import duckdb

HERE = pathlib.Path(__file__).parent

EVENTS = """
    SELECT InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice, CustomerID, Country
    FROM read_parquet($path)
"""

# Stock notes ("check", "damages", "?") have no price.
PRODUCTS = r"""
    SELECT StockCode, Description FROM (
        SELECT StockCode, trim(regexp_replace(Description, '\s+', ' ', 'g')) AS Description, count(*) AS lines
        FROM read_parquet($path)
        WHERE regexp_full_match(StockCode, '[0-9]{5}[A-Z]{0,2}') AND UnitPrice > 0
            AND StockCode NOT IN ('22016', '23444')
        GROUP BY ALL
    )
    WHERE Description <> ''
    QUALIFY row_number() OVER (PARTITION BY StockCode ORDER BY lines DESC, Description) = 1
    ORDER BY StockCode
"""


def write(query: str, source: str, target: pathlib.Path) -> int:
    """Writes the query's answer as Parquet and returns the number of rows."""
    with duckdb.connect() as connection:
        connection.sql(query, params={"path": source}).write_parquet(str(target), compression="zstd")
        [(rows,)] = connection.sql("SELECT count(*) FROM read_parquet($path)", params={"path": str(target)}).fetchall()
    return int(rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name, query in {"online_retail.parquet": EVENTS, "online_retail_items.parquet": PRODUCTS}.items():
        print(f"{name}: {write(query, sys.argv[1], HERE / name):,} rows")
