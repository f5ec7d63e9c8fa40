"""The synthetic world as files: events, items and a job file that is ready to run."""

import datetime as dt
import json
import logging
from pathlib import Path

from data import errors, synthetic

_JOB = """\
# A synthetic world of {users} users and {items} items, seed {seed}. Nobody in it is real.
[job]
name = "synthetic"
data_set = "synthetic-{seed}"
store = {store}

[source]
kind = "parquet"
paths = [{events}]
columns = {{ event_id = "event_id", event_type = "event_type", value = "value", arrival_time = "arrival_time" }}
event_types = {{ view = 1.0, purchase = 2.0 }}

[catalogue]
path = {catalogue}
features = ["genre", "maker", "price"]

[privacy]
total_epsilon = 1.0
total_delta = {delta!r}
expected_users = {users}
key_file = {key}

[window]
size = "all"
start = {start}
end = {end}
slack_seconds = 86400.0

[evaluation]
data = "synthetic"
"""

log = logging.getLogger(__name__)


def run(directory: Path, users: int, items: int, seed: int) -> None:
    """Writes the world and its job file; `sottovoce key` makes the key that it names.

    Raises:
        errors.BadRequestError: a number is out of range, or there are events in the directory already.
    """
    try:
        world = synthetic.World(users=users, items=items, seed=seed)
        synthetic.write(world, directory)
    except ValueError as error:
        raise errors.BadRequestError(f"synth: {error}") from error
    except FileExistsError as error:
        raise errors.BadRequestError(f"synth: {directory} has a world already; delete it or give another directory.") from error
    day = dt.timedelta(days=1)
    job = _JOB.format(
        users=users,
        items=items,
        seed=seed,
        delta=min(1e-6, 0.1 / users),
        # A JSON string is a TOML string.
        store=json.dumps(str(directory / "store")),
        events=json.dumps(str(directory / "events" / "*.parquet")),
        catalogue=json.dumps(str(directory / "items.parquet")),
        key=json.dumps(str(directory / "pseudonym.key")),
        start=world.start.date(),
        end=(world.end + day).date(),
    )
    (directory / "job.toml").write_text(job, encoding="utf-8")
    log.info(
        "wrote %s; next: sottovoce key %s/pseudonym.key, sottovoce budget init %s/job.toml, sottovoce run %s/job.toml",
        *[directory] * 4,
    )


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("synth")
