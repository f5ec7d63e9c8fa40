"""Streams on a real Flink cluster whose parts are killed, against a query over the file. `make drill`."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pipelines import publish, release, stream
from runners import cluster
from tests.drill import trial
from tests.pipelines import topics
from tests.pipelines.example import charges
from tests.pipelines.test_topics import until
from tests.runners.processes import flink_processes, is_java, is_worker

DAYS, SECONDS = 4, 40
N_EVENTS = int(os.environ.get("DRILL_EVENTS", 100_000))
RUNS = int(os.environ.get("DRILL_RUNS", 24))

Kill = Callable[[cluster.Cluster], None]


def kill_child(is_victim: Callable[[int], bool]) -> None:
    victims = sorted(filter(is_victim, flink_processes(os.getpid())))
    assert victims
    os.kill(random.choice(victims), signal.SIGKILL)


VICTIMS: dict[str, Kill] = {
    "TaskManager": lambda flink: flink.task_managers[0].kill(),
    "JobManager": lambda flink: flink.job_manager.kill(),
    "job server": lambda _: kill_child(is_java),
    "a worker": lambda _: kill_child(is_worker),
}
MOMENTS = ("window", "release", "publish")


@contextlib.contextmanager
def killing(flink: cluster.Cluster, victim: str, moment: str) -> Iterator[list[str]]:
    """Kills once while the body runs, and starts again what is missing; yields what was done.

    Args:
        moment: "window": while windows are open, at random; else as the second window is being released or published.
    """
    begun, done, calls = time.monotonic(), list[str](), itertools.count()
    is_now = threading.Event()

    def kill() -> None:
        if moment == "window":
            is_now.wait(15 + random.random() * SECONDS)
        else:
            is_now.wait()
        VICTIMS[victim](flink)
        done.append(f"killed at {time.monotonic() - begun:.0f} s")
        flink.start()

    def counted(step: Callable) -> Callable:
        def call(*given, **named):
            if next(calls) == 1:
                is_now.set()
            return step(*given, **named)

        return call

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        if moment == "release":
            patch.setattr(release, "run_window", counted(release.run_window))
        if moment == "publish":
            patch.setattr(publish, "run", counted(publish.run))
        yield done
    thread.join()


@pytest.fixture(scope="module")
def flink(flink_jars, tmp_path_factory, request) -> Iterator[cluster.Cluster]:
    """A cluster of so many TaskManagers, with room for a stream and a release."""
    with cluster.Cluster(tmp_path_factory.mktemp("flink"), n_task_managers=request.param, slots=2) as running:
        yield running


def runs() -> list[tuple[int, int, str, str]]:
    """Each victim at each moment, on one TaskManager, then on two, and the same again: number, TaskManagers, victim, moment."""
    every = itertools.cycle(itertools.product((1, 2), VICTIMS, MOMENTS))
    return [(number, *run) for number, run in enumerate(itertools.islice(every, RUNS))]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "flink", "victim", "moment"), runs(), indirect=["flink"])
def test_a_stream_outlives_what_it_runs_on(broker, flink, tmp_path, number, victim, moment):
    path, topic = topics.write_job(tmp_path, broker, epsilon=trial.EXACT)
    events = trial.write_events(tmp_path, N_EVENTS, DAYS)
    # Where releases are to be hit, they run on the cluster too.
    kind = "flink" if moment == "release" else "direct"
    # A subtask of each step on each TaskManager.
    parallelism = len(flink.task_managers)
    runner = [f"--runner.kind={kind}", f"--runner.master={flink.master}", f"--runner.parallelism={parallelism}"]
    job = topics.load(path, *trial.flags(DAYS), *trial.UNBOUNDED, *runner)

    def feed() -> None:
        trial.send(broker, topic, events, speed=DAYS * 86_400 / SECONDS)
        trial.end(broker, topic)

    feeding = threading.Thread(target=feed)
    feeding.start()
    begun = time.monotonic()
    with killing(flink, victim, moment) as done:
        stream.run(job, until=until(DAYS + 1, 1))
    feeding.join()
    through = f"through at {time.monotonic() - begun:.0f} s"
    print(f"{number}: {victim} ({parallelism} TaskManagers), during a {moment}: {', '.join(done)}; {through}")
    assert trial.released(job) == trial.counted(events)
    assert trial.letters(broker, topic) == trial.malformed(broker, topic)
    windows = [(charge["window_start"], charge["status"]) for charge in charges(job)]
    assert len(windows) == len(set(windows)) == DAYS
