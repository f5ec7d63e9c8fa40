"""The first ledger. Tables are written out: a migration says what was made then, whatever the code says now."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes all tables."""
    op.create_table("secret", sa.Column("value", sa.String(64), primary_key=True))
    op.create_table(
        "contracts",
        sa.Column("data_set", sa.String(200), primary_key=True),
        sa.Column("unit", sa.String(20), nullable=False),
        sa.Column("period", sa.String(20), nullable=False),
        sa.Column("composition", sa.String(20), nullable=False),
        sa.Column("total_epsilon", sa.Double, nullable=False),
        sa.Column("total_delta", sa.Double, nullable=False),
        sa.Column("selection_delta", sa.Double, nullable=False),
        sa.Column("capacity", sa.Double, nullable=False),
        sa.Column("source", sa.String(64), nullable=False, unique=True),
        sa.Column("key_fingerprint", sa.String(64), nullable=False),
    )
    op.create_table(
        "closed_periods",
        sa.Column("data_set", sa.String(200), sa.ForeignKey("contracts.data_set"), primary_key=True),
        sa.Column("period", sa.String(20), primary_key=True),
    )
    op.create_table(
        "releases",
        sa.Column("release_id", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.Integer, nullable=False, unique=True),
        sa.Column("data_set", sa.String(200), sa.ForeignKey("contracts.data_set"), nullable=False),
        sa.Column("address", sa.String(64), nullable=False, unique=True),
        sa.Column("window_start", sa.String(40), nullable=False),
        sa.Column("window_end", sa.String(40), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("attempt", sa.String(32), nullable=False),
        sa.Column("charge", sa.Text, nullable=False),
        sa.Column("reserved_at", sa.String(40), nullable=False),
        sa.Column("job", sa.String(200), nullable=False),
        sa.Column("code_version", sa.String(40), nullable=False),
    )
    op.create_table(
        "charges",
        sa.Column("release_id", sa.String(32), sa.ForeignKey("releases.release_id"), primary_key=True),
        sa.Column("data_set", sa.String(200), nullable=False),
        sa.Column("period", sa.String(20), primary_key=True),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("delta", sa.Double, nullable=False),
    )
    op.create_index("charges_by_period", "charges", ["data_set", "period"])
    op.create_table(
        "history",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("data_set", sa.String(200), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
    )
