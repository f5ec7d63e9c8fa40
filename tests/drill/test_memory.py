"""The largest matrix fits where the forecast says. `make drill` runs this: a minute and a half, 9 GB."""

import datetime as dt
import os
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runners import direct
from transforms.ingest import pseudonym
from transforms.release import cooccurrence

USERS = 5000
JOB = """
[job]
name = "large"
data_set = "large"
store = "{directory}/store"
[source]
kind = "parquet"
paths = ["{directory}/events.parquet"]
event_types = {{ view = 1.0 }}
[catalogue]
path = "{directory}/items.parquet"
[privacy]
total_epsilon = 1.0
total_delta = 1e-7
expected_users = 5000
key_file = "{directory}/pseudonym.key"
[window]
size = "all"
start = 2025-01-01T00:00:00Z
end = 2025-07-01T00:00:00Z
[cooccurrence]
max_items = {n_items}
"""


@pytest.mark.slow
@pytest.mark.skipif(direct.memory() < cooccurrence.memory_needed(cooccurrence.MAX_ITEMS), reason="needs 14 GB of memory")
def test_the_largest_matrix_is_released_within_the_forecast(tmp_path):
    n_items, rng = cooccurrence.MAX_ITEMS, np.random.default_rng(0)
    items = pa.array([str(i) for i in range(n_items)])
    pq.write_table(pa.table({"item_id": items}), tmp_path / "items.parquet")
    n = 30 * USERS
    events = {
        "privacy_id": pa.array(rng.integers(0, USERS, n)).cast(pa.string()),
        "item_id": items.take(pa.array(rng.integers(0, n_items, n))),
        "event_type": pa.array(["view"] * n),
        "event_time": pa.array([dt.datetime(2025, 3, 1, tzinfo=dt.UTC)] * n),
    }
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    pseudonym.write_key(tmp_path / "pseudonym.key")
    (tmp_path / "job.toml").write_text(JOB.format(directory=tmp_path, n_items=n_items))
    for command in (["pipelines.cli", "budget", "init"], ["pipelines.release"]):
        words = [sys.executable, "-m", *command, str(tmp_path / "job.toml")]
        subprocess.run(words, check=True, env={**os.environ, "XDG_STATE_HOME": str(tmp_path)})
    # The largest of all child processes until now, in kB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak <= cooccurrence.memory_needed(n_items)
    tables = list((tmp_path / "store").rglob("item_pairs/*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in tables) == n_items * (n_items + 1) // 2
