"""Series of sliding windows."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds their step."""
    op.add_column("series", sa.Column("step_seconds", sa.Double))
