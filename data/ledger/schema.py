"""The ledger's tables. The migrations beside this make them; a test compares the two."""

import sqlalchemy as sa

from data import store

RESERVED, PUBLISHED, REFUSED = store.RESERVED, store.PUBLISHED, "refused"
"""What a release's `status` may be."""

metadata = sa.MetaData()

SECRET = sa.Table("secret", metadata, sa.Column("value", sa.String(64), primary_key=True))
"""One row: the key of content addresses, 64 hex digits."""

CONTRACTS = sa.Table(
    "contracts",
    metadata,
    sa.Column("data_set", sa.String(200), primary_key=True),
    sa.Column("unit", sa.String(20), nullable=False),
    sa.Column("period", sa.String(20), nullable=False),
    sa.Column("composition", sa.String(20), nullable=False),
    sa.Column("total_epsilon", sa.Double, nullable=False),
    sa.Column("total_delta", sa.Double, nullable=False),
    # the part of total_delta for partitions that only one user has
    sa.Column("selection_delta", sa.Double, nullable=False),
    # what the filter lets through in each period: mu^2, or rho
    sa.Column("capacity", sa.Double, nullable=False),
    sa.Column("source", sa.String(64), nullable=False, unique=True),
    sa.Column("key_fingerprint", sa.String(64), nullable=False),
)

CLOSED = sa.Table(
    "closed_periods",
    metadata,
    sa.Column("data_set", sa.ForeignKey("contracts.data_set"), primary_key=True),
    sa.Column("period", sa.String(20), primary_key=True),
)

RELEASES = sa.Table(
    "releases",
    metadata,
    sa.Column("release_id", sa.String(32), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False, unique=True),
    sa.Column("data_set", sa.ForeignKey("contracts.data_set"), nullable=False),
    sa.Column("address", sa.String(64), nullable=False, unique=True),
    sa.Column("window_start", sa.String(40), nullable=False),
    sa.Column("window_end", sa.String(40), nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("attempt", sa.String(32), nullable=False),
    # JSON: the release's public figures
    sa.Column("charge", sa.Text, nullable=False),
    sa.Column("reserved_at", sa.String(40), nullable=False),
    sa.Column("job", sa.String(200), nullable=False),
    sa.Column("code_version", sa.String(40), nullable=False),
)

CHARGES = sa.Table(
    "charges",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.release_id"), primary_key=True),
    sa.Column("data_set", sa.String(200), nullable=False),
    sa.Column("period", sa.String(20), primary_key=True),
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("delta", sa.Double, nullable=False),
    sa.Index("charges_by_period", "data_set", "period"),
)

SERIES = sa.Table(
    "series",
    metadata,
    sa.Column("series_id", sa.String(32), primary_key=True),
    sa.Column("data_set", sa.ForeignKey("contracts.data_set"), nullable=False),
    sa.Column("period", sa.String(20), nullable=False),
    sa.Column("address", sa.String(64), nullable=False, unique=True),
    sa.Column("start", sa.String(40), nullable=False),
    sa.Column("window_seconds", sa.Double, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("max_windows_contributed", sa.Integer, nullable=False),
    sa.Column("min_separation", sa.Integer, nullable=False),
    # of all its windows together: what a user pays who is in as many as may be
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("delta", sa.Double, nullable=False),
    sa.Column("planned_at", sa.String(40), nullable=False),
    sa.Column("job", sa.String(200), nullable=False),
    # of sliding windows; none: as long as a window
    sa.Column("step_seconds", sa.Double),
    sa.Index("series_by_period", "data_set", "period"),
)

PAGES = sa.Table(
    "pages",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.release_id"), primary_key=True),
    sa.Column("series_id", sa.ForeignKey("series.series_id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("units", sa.Integer, nullable=False),
    # none until the contribution book has it
    sa.Column("digest", sa.String(64)),
    sa.UniqueConstraint("series_id", "number"),
)
"""The contribution book's pages: one for each release of a series, numbered as its windows are."""

LEASES = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(401), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    # seconds since the epoch
    sa.Column("expires", sa.Double, nullable=False),
)
"""Which run has a job in hand. Not of the history: a lease spends nothing."""

VERSIONS = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.String(401), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("file", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)
"""Which version of a job's database in an object store people query. Not of the history either."""

PROMOTIONS = sa.Table(
    "promotions",
    metadata,
    sa.Column("name", sa.String(401), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.Integer, nullable=False),
    # active or refused
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("why", sa.String(20), nullable=False),
    # JSON: what was compared
    sa.Column("figures", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)
"""What was decided on a job's models, one row after the other and none ever changed. Not of the history either."""

HISTORY = sa.Table(
    "history",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("data_set", sa.String(200), nullable=False),
    # JSON
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
)
