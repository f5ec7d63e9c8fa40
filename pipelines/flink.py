"""A Flink cluster on this machine, for trials; and what runs on any."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from data import errors, state
from pipelines import config, sections
from runners import background, cluster, flink_rest

PORT = 8081
"""Where a new cluster listens if nothing else is said."""

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """Returns the cluster's directory: in the user's state directory, beside the ledger."""
    return state.directory() / "flink"


def up(directory: Path, port: int | None, n_task_managers: int | None, slots: int | None) -> list[str]:
    """Starts what doesn't run of the cluster in the background; returns the lines of a job file that reach it.

    Args:
        port: of one that doesn't run; None: as before, or else PORT.
        n_task_managers: None: as before, or else 1.
        slots: of each TaskManager of one that doesn't run; None: as before, or else 4.

    Raises:
        errors.BadInputError: it can't be started.
    """
    try:
        local = cluster.Cluster(directory, port, n_task_managers, slots)
        local.port = local.port or PORT
        local.start()
        overview = local.rest.overview()
    except (background.BackgroundError, flink_rest.FlinkError, OSError) as error:
        raise errors.BadInputError(f"flink: {error}") from error
    log.info("Flink %s is up at %s, %d slots, in %s", overview.version, local.master, overview.slots, local.directory)
    # A JSON string is a TOML string.
    return ['kind = "flink"', f"master = {json.dumps(local.master)}"]


def down(directory: Path) -> None:
    """Stops the cluster, if it is running, with its jobs; their checkpoints stay.

    Raises:
        errors.BadInputError: it can't be stopped.
    """
    try:
        was_running = cluster.Cluster(directory).stop()
    except (background.BackgroundError, OSError) as error:
        raise errors.BadInputError(f"flink: {error}") from error
    log.info("Flink is down; checkpoints stay in %s" if was_running else "no Flink is running in %s", directory)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The Flink cluster that a job file names.

    Attributes:
        problem: why nothing more is known of it; None: it answers.
        logs: its directory of logs, if it is one of `up`.
        jobs: the job's own that run there, and the last one that has ended.
    """

    master: str
    problem: str | None = None
    task_managers: int = 0
    slots: int = 0
    free_slots: int = 0
    logs: str | None = None
    jobs: list[flink_rest.Job] = dataclasses.field(default_factory=list)


def of_job(job: config.Job) -> Cluster | None:
    """Asks the cluster that the job runs on; None: it has none."""
    master = job.runner.master
    if master == sections.LOCAL_FLINK:
        return None
    rest, names = flink_rest.Flink(master), {part.job.name for part in job.parts}
    try:
        overview, logs, jobs = _look(rest)
    except flink_rest.FlinkError as error:
        return Cluster(master, str(error))
    ours = [each for each in jobs if each.name in names]
    ended = [each for each in ours if each.state in flink_rest.ENDED]
    shown = [each for each in ours if each not in ended] + ended[:1]
    return Cluster(master, None, overview.task_managers, overview.slots, overview.free_slots, logs, shown)


def status(master: str | None) -> Iterator[str]:
    """Yields lines on a cluster and its jobs.

    Args:
        master: HOST:PORT; None: the cluster in the default directory.

    Raises:
        errors.BadInputError: nothing answers.
    """
    rest = _rest(master)
    try:
        overview, logs, jobs = _look(rest)
    except flink_rest.FlinkError as error:
        raise errors.BadInputError(f"flink: {error}") from error
    slots = f"{overview.free_slots} of {overview.slots} slots free"
    yield f"Flink {overview.version} at {rest.address}: {overview.task_managers} TaskManager(s), {slots}"
    if logs is not None:
        yield f"logs: {logs}/*.log"
    for job in jobs:
        yield f"{job.name}  {job.state}  since {job.started:%Y-%m-%d %H:%M:%S} UTC  {job.job_id}"
    if not jobs:
        yield "no jobs"


def cancel(name_or_id: str, master: str | None) -> None:
    """Cancels a job that is not over.

    Raises:
        errors.BadInputError: nothing answers, or it refuses.
        errors.BadRequestError: there is no such job, or several have that name.
    """
    rest = _rest(master)
    try:
        running = [job for job in rest.jobs() if job.state not in flink_rest.ENDED]
        found = [job for job in running if name_or_id in (job.name, job.job_id)]
        if len(found) != 1:
            there = ", ".join(f"{job.name} ({job.job_id})" for job in found or running) or "none"
            wrong = "several jobs that run are" if found else "no job that runs is"
            raise errors.BadRequestError(f"flink: {wrong} called {name_or_id!r}. There are: {there}.")
        rest.cancel(found[0].job_id)
    except flink_rest.FlinkError as error:
        raise errors.BadInputError(f"flink: {error}") from error
    log.info("job %s (%s) is being cancelled", found[0].name, found[0].job_id)


def _look(rest: flink_rest.Flink) -> tuple[flink_rest.Overview, str | None, list[flink_rest.Job]]:
    """A cluster's overview, its directory of logs if it is one of `up`, and its jobs."""
    return rest.overview(), rest.settings().get(cluster.DIRECTORY_SETTING), rest.jobs()


def _rest(master: str | None) -> flink_rest.Flink:
    if master is None:
        local = cluster.Cluster(default_directory())
        if local.port is None:
            raise errors.BadInputError(
                f"flink: there is no cluster in {local.directory}; name another with --master HOST:PORT."
            )
        master = local.master
    return flink_rest.Flink(master)


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("flink")
