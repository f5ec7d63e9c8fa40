"""Small jobs: events as CSV lines and a job file around them."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import pytest

from data import store
from pipelines import cli, config, contract
from transforms.ingest import pseudonym

HEADER = "event_id,privacy_id,item_id,event_type,value,event_time,arrival_time"

_JOB = """
[job]
name = "test"
data_set = "test"
store = "{directory}/store"
[source]
kind = "csv"
paths = ["{directory}/events.csv"]
columns = {{ event_id = "event_id", event_type = "event_type", value = "value", arrival_time = "arrival_time" }}
event_types = {{ view = 1.0, buy = 2.0 }}
max_malformed_share = 0.5
{catalogue}
[privacy]
total_epsilon = {epsilon}
total_delta = 1e-6
expected_users = 1000
key_file = "{directory}/pseudonym.key"
ledger = "sqlite:///{directory}/ledger.sqlite"
[window]
start = 2025-01-01
end = 2025-02-01
[counts]
max_partitions_contributed = 3
max_contributions_per_partition = 2
[cooccurrence]
max_items = 4
"""
_CATALOGUE = '[catalogue]\npath = "{directory}/items.csv"\nfeatures = ["genre"]'
_ITEMS = "item_id,title,genre\na,Apple,fruit\nb,Banana,fruit\nc,Carrot,root\nd,Daikon,root\n"

EXACT = 1e7
"""An epsilon at which noise is far below one: released counts are the exact integers."""


def view(user: str, item: str, event_id: str = "", time: str = "2025-01-10", arrival: str = "", kind: str = "view") -> str:
    """One event as a CSV line."""
    return f"{event_id},{user},{item},{kind},,{time},{arrival}"


def write_job(directory: pathlib.Path, lines: Sequence[str], epsilon: float = EXACT, catalogue: bool = True) -> pathlib.Path:
    """Writes events, items, a key and the job file; returns the job file's path."""
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "events.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (directory / "items.csv").write_text(_ITEMS)
    if not (directory / "pseudonym.key").exists():
        pseudonym.write_key(directory / "pseudonym.key")
    section = _CATALOGUE.format(directory=directory) if catalogue else ""
    path = directory / "job.toml"
    path.write_text(_JOB.format(directory=directory, epsilon=epsilon, catalogue=section))
    return path


def synthetic_world(directory: pathlib.Path, users: int, items: int, seed: int = 7) -> pathlib.Path:
    """The job file of a synthetic world with a pseudonym key, by the commands; nothing of it was released."""
    numbers = ["--users", str(users), "--items", str(items), "--seed", str(seed)]
    assert cli.main(["synth", str(directory), *numbers]) == 0
    assert cli.main(["key", str(directory / "pseudonym.key")]) == 0
    return directory / "job.toml"


def assert_nothing_is_kept(path: pathlib.Path) -> None:
    """Of what ran on a synthetic world: no file is new, and nothing is charged."""
    assert sorted(each.name for each in path.parent.iterdir()) == ["events", "items.parquet", "job.toml", "pseudonym.key"]
    job = config.load(path)[0]
    assert contract.open_ledger(job).contract(job.job.data_set) is None


def load(path: pathlib.Path, *flags: str) -> config.Job:
    """Reads the job file that `write_job` wrote; the first time, its budget becomes the contract."""
    job = config.load(path, flags)[0]
    if contract.open_ledger(job).contract(job.job.data_set) is None:
        contract.init(job)
    return job


@contextlib.contextmanager
def crashing(step: str) -> Iterator[None]:
    """What runs within ends when it comes to this step of the store."""
    with pytest.MonkeyPatch.context() as crash:
        crash.setattr(store.Store, step, lambda *_: 1 / 0)
        with pytest.raises(Exception, match="division by zero"):
            yield


def charges(job: config.Job) -> list[dict]:
    """What was reserved for the job's data set, oldest first."""
    return contract.open_ledger(job).releases(job.job.data_set)


def published(job: config.Job) -> list[dict]:
    """The manifests of the releases in the job's store."""
    return store.Store(job.job.store).published(charges(job))
