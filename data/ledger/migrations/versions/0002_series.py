"""Series of windows that are charged once, their pages of the contribution book, and leases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds their tables."""
    op.create_table(
        "series",
        sa.Column("series_id", sa.String(32), primary_key=True),
        sa.Column("data_set", sa.String(200), sa.ForeignKey("contracts.data_set"), nullable=False),
        sa.Column("period", sa.String(20), nullable=False),
        sa.Column("address", sa.String(64), nullable=False, unique=True),
        sa.Column("start", sa.String(40), nullable=False),
        sa.Column("window_seconds", sa.Double, nullable=False),
        sa.Column("windows", sa.Integer, nullable=False),
        sa.Column("max_windows_contributed", sa.Integer, nullable=False),
        sa.Column("min_separation", sa.Integer, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("delta", sa.Double, nullable=False),
        sa.Column("planned_at", sa.String(40), nullable=False),
        sa.Column("job", sa.String(200), nullable=False),
    )
    op.create_index("series_by_period", "series", ["data_set", "period"])
    op.create_table(
        "pages",
        sa.Column("release_id", sa.String(32), sa.ForeignKey("releases.release_id"), primary_key=True),
        sa.Column("series_id", sa.String(32), sa.ForeignKey("series.series_id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("units", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64)),
        sa.UniqueConstraint("series_id", "number"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(401), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
    )
