"""The privacy ledger: what each data set may spend, what was ever reserved, and what came to be published.

It lies outside every store, in SQLite or PostgreSQL, and outlives them. All that is in it is the operator's: a release's
content address is an HMAC under the ledger's own secret, its public id is random. Every change appends a row to a hash-chained
history, from which all else can be told again: `verify` does.

`ledger` has the operations, `decisions` what is decided on a request, `history` the chain, `transactions` the database,
`records` what is asked and answered, `schema` the tables. Migrations are Alembic's; opening a ledger brings it up to date.
"""

from data.ledger.history import GENESIS
from data.ledger.ledger import Ledger
from data.ledger.records import (
    BudgetRefusedError,
    Contract,
    Grant,
    LedgerError,
    Page,
    Promotion,
    Request,
    Series,
    Spent,
    Version,
)
from data.ledger.schema import PUBLISHED, REFUSED, RESERVED

__all__ = [
    "GENESIS",
    "PUBLISHED",
    "REFUSED",
    "RESERVED",
    "BudgetRefusedError",
    "Contract",
    "Grant",
    "Ledger",
    "LedgerError",
    "Page",
    "Promotion",
    "Request",
    "Series",
    "Spent",
    "Version",
]
