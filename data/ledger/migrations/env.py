"""Alembic runs migrations over the connection, and in the transaction, that data.ledger.transactions gives it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
