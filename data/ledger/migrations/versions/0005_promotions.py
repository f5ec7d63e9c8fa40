"""Which model of a job was made active or refused, when and why."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds their table."""
    op.create_table(
        "promotions",
        sa.Column("name", sa.String(401), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("model", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("why", sa.String(20), nullable=False),
        sa.Column("figures", sa.Text, nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
    )
