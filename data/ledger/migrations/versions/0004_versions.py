"""The version of a job's database that people query, where the store is in an object store."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds their table."""
    op.create_table(
        "versions",
        sa.Column("name", sa.String(401), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("file", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
    )
