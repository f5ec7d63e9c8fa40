"""The command line: `sottovoce COMMAND ...`. Flags of the form --section.key set the job file's keys; the rest go to Beam."""

# Each command imports what it needs: a query should not wait for Beam.

import argparse
import contextlib
import datetime as dt
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import errors, state

if TYPE_CHECKING:
    from pipelines import config

INTERRUPTED = 130

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (README lists them). What a user can mend is one line, not a traceback."""
    _show_progress()
    ours, rest = _split(sys.argv[1:] if argv is None else argv)
    arguments, others = _parser().parse_known_args(rest)
    flags = [*ours, *others]
    if flags and not getattr(arguments, "takes_flags", False):
        _parser().error(f"unrecognized arguments: {' '.join(flags)}")
    try:
        arguments.command(arguments, flags)
    except errors.UserError as error:
        print(f"sottovoce: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        charged = " What was reserved stays charged; the same job run again uses it."
        print(f"sottovoce: interrupted.{charged if hasattr(arguments, 'job') else ''}", file=sys.stderr)
        return INTERRUPTED
    return 0


def main_of(command: str) -> None:
    """Runs one command as a program: `python -m pipelines.COMMAND JOB.toml ...`."""
    sys.exit(main([command, *sys.argv[1:]]))


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--section.key value` out of the words: argparse would not know that the value is one."""
    ours: list[str] = []
    rest = list(argv)
    for index in range(len(rest) - 1, -1, -1):
        name, equals, _ = rest[index].partition("=")
        if re.fullmatch(r"--\w+\.[\w.]*", name):
            end = index + (1 if equals else 2)
            ours[:0] = rest[index:end]
            del rest[index:end]
    return ours, rest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sottovoce", description="Private recommendations from user events.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command, text in (
        ("run", _run, "release (or read back the same release), train and publish"),
        ("release", _release, "release differentially private tables from the job's events"),
        ("train", _train, "train a model on the newest release"),
        ("publish", _publish, "publish the active model, or the newest if it may be, as a DuckDB version"),
    ):
        job = _of_job(commands, name, text)
        if name in ("run", "release"):
            job.add_argument("--new-release", action="store_true", help="charge every user again, though a release is there")
            job.add_argument("--until", metavar="TIME", help="release each window that is closed then; now, or a time in UTC")
        job.set_defaults(command=command)
    stream = _of_job(commands, "stream", "release a topic's windows as they close, for ever")
    stream.add_argument("--until", metavar="TIME", help="end with the last window that is closed then")
    stream.add_argument("--metrics", type=_port, metavar="PORT", help="Prometheus metrics on 127.0.0.1")
    stream.set_defaults(command=_stream)
    schedule = _of_job(commands, "schedule", "run a job with windows again and again")
    schedule.add_argument(
        "--foreground", action="store_true", help="here and now; without it, print a systemd timer and a cron line"
    )
    schedule.add_argument("--metrics", type=_port, metavar="PORT", help="with --foreground: Prometheus metrics on 127.0.0.1")
    schedule.set_defaults(command=_schedule)
    state_of = _of_job(commands, "status", "lag, delay, latency, budget left and alerts of a job")
    given = state_of.add_mutually_exclusive_group()
    given.add_argument("--format", choices=("text", "json"), default="text")
    given.add_argument("--serve", type=_port, metavar="PORT", help="Prometheus metrics on 127.0.0.1, until SIGTERM")
    state_of.set_defaults(command=_status)
    _add_budget(commands.add_parser("budget", help="what may be spent, and what was", allow_abbrev=False))
    measure = _of_job(commands, "evaluate", "how good recommendations are; on private events with noise, charged")
    measure.add_argument("--split", choices=("users", "time"), default="users", help="what the model doesn't see")
    measure.add_argument("--models", type=_count, metavar="N", help="private events: compare N models from before too")
    measure.add_argument("--k", type=_count, default=20, metavar="N", help="recommendations a user")
    measure.add_argument("--format", choices=("text", "json"), default="text")
    measure.set_defaults(command=_evaluate)
    proof = _of_job(commands, "audit", "whether the job keeps its promise, by canaries on public or synthetic events")
    proof.add_argument("--canaries", type=_count, default=1000, metavar="N", help="in each run; default: 1000")
    proof.add_argument(
        "--epsilon", type=_positive, default=8.0, metavar="E", help="the promise; default: 8 (at 1 it shows nothing)"
    )
    proof.add_argument("--runs", type=_count, metavar="N", help="default: as many as the control without noise needs")
    proof.add_argument("--format", choices=("text", "json"), default="text")
    proof.set_defaults(command=_audit)
    _add_models(commands.add_parser("models", help="which model people are served, and which they were", allow_abbrev=False))
    _add_tune(_of_job(commands, "tune", "what epsilon buys, and how best to spend it, by simulation"))
    told = commands.add_parser("report", help="an HTML page about what is published, and what it cost", allow_abbrev=False)
    told.add_argument("job", type=Path, metavar="JOB.toml", nargs="?")
    told.add_argument("--store", type=Path, help="instead of a job; default: the store published to last on this machine")
    told.add_argument("--output", type=Path, metavar="FILE", help="default: NAME-report.html")
    told.set_defaults(command=_report, takes_flags=True)
    ask = commands.add_parser("query", help="query the published database with SQL", allow_abbrev=False)
    ask.add_argument("sql", metavar="SQL")
    ask.add_argument("--store", type=Path, help="default: the store published to last on this machine")
    ask.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
    ask.set_defaults(command=_query)
    pull = _of_job(commands, "pull", "get the current database from an object store, for query")
    pull.add_argument("--directory", type=Path, help="where, for query's --store; default: in your state directory")
    pull.set_defaults(command=_pull)
    key = commands.add_parser("key", help="write a new pseudonym key", allow_abbrev=False)
    key.add_argument("file", type=Path, metavar="FILE")
    key.add_argument("--encryption", action="store_true", help="an encryption key instead, before those that FILE has")
    key.set_defaults(command=_key)
    rotate = _of_job(commands, "rotate", "encrypt a job's raw side files under the newest key")
    rotate.set_defaults(command=_rotate)
    forget = _of_job(commands, "forget", "opt users out and delete their raw traces")
    forget.add_argument("--ids", type=Path, metavar="FILE", help="their ids, one a line; default: from standard input")
    forget.set_defaults(command=_forget)
    letters = _of_job(commands, "letters", "show a job's dead letters, decrypted: the operator's")
    letters.add_argument("--attempt", help="those of one run alone")
    letters.set_defaults(command=_letters)
    synth = commands.add_parser("synth", help="write a synthetic world of events, with a job file", allow_abbrev=False)
    synth.add_argument("directory", type=Path, metavar="DIRECTORY")
    synth.add_argument("--users", type=int, default=100_000)
    synth.add_argument("--items", type=int, default=5_000)
    synth.add_argument("--seed", type=int, default=0)
    synth.set_defaults(command=_synth)
    _add_kafka(commands.add_parser("kafka", help="a job's topics, and a broker on this machine for trials", allow_abbrev=False))
    _add_flink(commands.add_parser("flink", help="a Flink cluster on this machine for trials; jobs of any", allow_abbrev=False))
    _add_replay(commands.add_parser("replay", help="send files of events to a Kafka topic", allow_abbrev=False))
    return parser


def _of_job(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str) -> argparse.ArgumentParser:
    """A command on a job file, whose keys its flags may set."""
    parser = commands.add_parser(name, help=text, allow_abbrev=False, epilog="--section.key VALUE sets a key of the job file.")
    parser.add_argument("job", type=Path, metavar="JOB.toml")
    parser.set_defaults(takes_flags=True)
    return parser


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epsilons", type=_positive, nargs="+", metavar="E", help="of the curve; default: 0.25 to 8")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--target-recall", type=_share, metavar="R", help="find the least epsilon with this Recall@k")
    goal.add_argument(
        "--target-count-error", type=_positive, metavar="X", help="find the least epsilon with this relative error of counts"
    )
    parser.add_argument("--k", type=_count, default=20, metavar="N", help="recommendations a user")
    parser.add_argument(
        "--world", choices=("fitted", "events"), help="whose users; default: events if [evaluation] says they are no secret"
    )
    parser.add_argument("--users", type=_users, metavar="N", help="simulated at most; default: 20000")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a page, and a PNG beside it; default: NAME-tuning.html")
    parser.set_defaults(command=_tune)


def _add_kafka(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("up", "start it in the background, and print how a job file reaches it"),
        ("down", "stop it; its data stay"),
    ):
        kafka = actions.add_parser(name, help=text, allow_abbrev=False)
        kafka.add_argument("--directory", type=Path, help="its data, log and passwords; default: in your state directory")
        if name == "up":
            kafka.add_argument("--port", type=int, help="default: as before, or 9092")
            kafka.add_argument("--secure", action="store_true", help="with TLS, a login (SCRAM-SHA-512) and ACLs")
        kafka.set_defaults(command=_kafka, action=name)
    init = _of_job(actions, "init", "make the topics of a job, or say what is wrong with them")
    init.set_defaults(command=_kafka_init)


def _add_flink(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("up", "start it, or what of it died, in the background, and print how a job file names it"),
        ("down", "stop it, with its jobs; their checkpoints stay"),
        ("status", "its TaskManagers, slots and jobs"),
        ("cancel", "cancel a job"),
    ):
        flink = actions.add_parser(name, help=text, allow_abbrev=False)
        if name in ("up", "down"):
            flink.add_argument(
                "--directory", type=Path, help="its settings, logs and checkpoints; default: in your state directory"
            )
        else:
            flink.add_argument("--master", metavar="HOST:PORT", help="default: the cluster that `up` starts by default")
        if name == "up":
            flink.add_argument("--port", type=int, help="default: as before, or 8081")
            flink.add_argument("--task-managers", type=_count, metavar="N", help="default: as before, or 1")
            flink.add_argument("--slots", type=_count, metavar="N", help="of each TaskManager; default: as before, or 4")
        if name == "cancel":
            flink.add_argument("job_name_or_id", metavar="JOB_NAME_OR_ID")
        flink.set_defaults(command=_flink, action=name)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="Parquet, CSV or JSON lines (.jsonl)")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--create", type=int, default=0, metavar="PARTITIONS", help="make the topic if it isn't there")
    parser.add_argument("--time-column", default="event_time", metavar="COLUMN")
    parser.add_argument("--key", metavar="COLUMN", help="the messages' key; default: none, and any partition")
    parser.add_argument(
        "--speed", type=_speed, default=0.0, help="seconds of events in one second; default: max, the same as 0"
    )
    parser.add_argument("--disorder", type=float, default=0.0, metavar="SECONDS", help="events arrive up to so much late")
    parser.add_argument("--repeats", type=float, default=0.0, metavar="SHARE", help="of the events are sent twice")
    parser.add_argument(
        "--malformed", type=float, default=0.0, metavar="SHARE", help="of messages that are no JSON, beside them"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-arrival", action="store_true", help="stamp messages with their simulated arrival (CreateTime)")
    parser.add_argument("--bootstrap", required=True, metavar="HOST:PORT")
    parser.add_argument("--security", choices=("plaintext", "ssl", "sasl_plaintext", "sasl_ssl"), default="plaintext")
    parser.add_argument("--ca-file", type=Path, help="PEM; default: the system's authorities")
    parser.add_argument("--username")
    parser.add_argument("--password-file", type=Path)
    parser.set_defaults(command=_replay)


def _add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("list", "every model: its state, what it was trained on, and what was decided on it"),
        ("promote", "make a model the active one, whatever its figure, and publish it"),
        ("rollback", "make a model active again at once, with the database of then"),
        ("compare", "figures, recommendations and parameters of two models"),
    ):
        models = _of_job(actions, name, text)
        if name == "promote":
            models.add_argument("model", type=_number, metavar="N")
        if name == "rollback":
            models.add_argument("model", type=_number, metavar="N", nargs="?", help="default: the one active before")
        if name == "compare":
            models.add_argument("model", type=_number, metavar="N")
            models.add_argument("other", type=_number, metavar="M")
        if name in ("list", "compare"):
            models.add_argument("--format", choices=("text", "json"), default="text")
        models.set_defaults(command=_models, action=name)


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text} is not the number of a model")
    return int(text)


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 1 to 65535, or 0 for any that is free")
    return int(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 9999")
    return int(text)


def _positive(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _share(text: str) -> float:
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def _users(text: str) -> int:
    if int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text}: too few to learn anything from; at least 100")
    return int(text)


def _speed(text: str) -> float:
    return 0.0 if text == "max" else float(text)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text in (
        ("init", "write the job's [privacy] down as its data set's contract"),
        ("show", "the contract, and what is left of it in each period"),
        ("grant", "raise the contract's totals; it stays in the history"),
        ("close", "close a period for good: nothing of it is released any more"),
        ("history", "every change, with the hash of the chain then"),
        ("verify", "check the chain, the charges and the store; prints the newest hash, to keep elsewhere"),
    ):
        budget = _of_job(actions, name, text)
        if name == "grant":
            budget.add_argument("--epsilon", type=float, required=True, help="the new total_epsilon")
            budget.add_argument("--delta", type=float, help="the new total_delta; default: as it is")
            budget.add_argument("--why", required=True, help="who decided it, and for what reason")
        if name == "close":
            budget.add_argument("--period", required=True, help="its name, as `budget show` has it")
        if name == "verify":
            budget.add_argument("--head", help="a hash that `verify` printed before")
        budget.set_defaults(command=_budget, action=name)


def _budget(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import contract

    job = _own_flags_only(arguments, flags)
    match arguments.action:
        case "init":
            contract.init(job)
        case "show":
            print("\n".join(contract.show(job)))
        case "grant":
            contract.grant(job, arguments.epsilon, arguments.delta, arguments.why)
        case "close":
            contract.close(job, arguments.period)
        case "history":
            print("\n".join(contract.history(job)))
        case "verify":
            print(contract.verify(job, arguments.head))


def _run(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import config, publish, train

    job, beam_flags = config.load(arguments.job, flags)
    refused: errors.UserError | None = None
    released: list[str | None] = []
    try:
        for part, release_id in _releases(job, beam_flags, arguments):
            released.append(None if part.is_trending else release_id)
    except errors.UserError as error:
        # What was released before goes on; what was refused is said in the end.
        refused = error
    if released or (not refused and publish.is_due(job)):
        train.run_if_due(job, next(filter(None, reversed(released)), None))
        publish.run(job)
        _remember(job)
    elif not refused:
        log.info("nothing to do: no window is closed that was not released before")
    if refused:
        raise refused


def _release(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import config

    job, beam_flags = config.load(arguments.job, flags)
    for _ in _releases(job, beam_flags, arguments):
        pass


def _releases(job: "config.Job", beam_flags: list[str], arguments: argparse.Namespace) -> Iterator[tuple["config.Job", str]]:
    """The job's one release, or that of each window until a time; each with the part of the job that it is of."""
    from pipelines import config, release

    is_windowed = job.window.size != "all"
    if is_windowed != (arguments.until is not None) or (is_windowed and arguments.new_release):
        raise config.JobFileError(
            f"window.size = {job.window.size!r}: "
            + ("say --until now, or a time, and no --new-release." if is_windowed else "--until is for jobs with windows.")
        )
    if is_windowed:
        return release.run_until(job, _time(arguments.until), beam_flags)
    return iter([(job, release.run(job, beam_flags, arguments.new_release))])


def _time(text: str) -> dt.datetime:
    from pipelines import config, sections

    if text == "now":
        return dt.datetime.now(dt.UTC)
    try:
        return sections.utc(dt.datetime.fromisoformat(text))
    except ValueError as error:
        raise config.JobFileError(f"--until {text}: must be now, or a time such as 2025-12-31T08:00:00Z.") from error


def _stream(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import config, stream

    job, beam_flags = config.load(arguments.job, flags)
    _remember(job)
    with _metrics(job, arguments.metrics):
        stream.run(job, beam_flags, None if arguments.until is None else _time(arguments.until))


def _schedule(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import config
    from runners import schedule

    job, _ = config.load(arguments.job, flags)
    if job.window.size == "all":
        raise config.JobFileError('window.size = "all": a schedule is for jobs with windows that follow one another.')
    # Where there are short windows, each run comes with the end of one.
    window = job.parts[-1].window
    # Windows of which each starts a step after the one before end a step after one another too.
    times = schedule.cadence(window.start + window.duration - window.step, window.step, window.slack + job.settling)
    command = [sys.executable, "-m", "pipelines.cli", "run", str(arguments.job.absolute()), "--until", "now", *flags]
    if arguments.metrics is not None and not arguments.foreground:
        raise config.JobFileError("--metrics: needs --foreground; with systemd or cron, `sottovoce status --serve` has them.")
    if arguments.foreground:
        with _metrics(job, arguments.metrics):
            schedule.run(times, command)
        return
    given, secrets = config.variables()
    # Always: systemd and cron may have another HOME, and so another default ledger.
    environment = {"XDG_STATE_HOME": str(state.directory().parent), **given}
    try:
        print(schedule.units(job.job.name, times, command, Path.cwd(), environment, secrets))
        print("# or in a crontab:\n" + schedule.cron_line(times, command, Path.cwd(), environment, secrets), end="")
    except ValueError as error:
        raise config.JobFileError(f"schedule: {error}") from error


@contextlib.contextmanager
def _metrics(job: "config.Job", port: int | None) -> Iterator[None]:
    """Serves the job's metrics meanwhile, if there is a port for them."""
    from pipelines import metrics

    if port is None:
        yield
        return
    with metrics.serving(job, port):
        yield


def _status(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import status

    job = _own_flags_only(arguments, flags)
    if arguments.serve is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        with _metrics(job, arguments.serve):
            signal.pause()
        return
    found = status.read(job)
    print(status.as_json(found) if arguments.format == "json" else "\n".join(status.as_text(found)))
    status.check(found)


def _train(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import train

    train.run(_own_flags_only(arguments, flags))


def _publish(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import publish

    job = _own_flags_only(arguments, flags)
    publish.run(job)
    _remember(job)


def _models(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import publish, registry

    job = _own_flags_only(arguments, flags)
    match arguments.action:
        case "list":
            listed = registry.described(job)
            print(registry.as_json(listed) if arguments.format == "json" else "\n".join(registry.as_text(listed)))
        case "promote":
            print(registry.promote(job, arguments.model))
            publish.run(job)
        case "rollback":
            model, said = registry.rollback(job, arguments.model)
            print(f"{said}: {publish.show(job, model)}")
        case "compare":
            found = registry.compared(job, arguments.model, arguments.other)
            print(registry.as_json(found) if arguments.format == "json" else "\n".join(registry.compared_as_text(found)))


def _evaluate(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import config, evaluate, evaluate_private

    job, beam_flags = config.load(arguments.job, flags)
    if job.evaluation.data == "private":
        if arguments.split != "users":
            raise config.JobFileError("--split time: on private data users are held out, before a release.")
        released = evaluate_private.run(job, arguments.k, arguments.models or 0, beam_flags)
        as_json = arguments.format == "json"
        print(evaluate_private.as_json(released) if as_json else "\n".join(evaluate_private.as_text(released)))
        return
    if arguments.models is not None:
        raise config.JobFileError(
            f'--models {arguments.models}: is for private data; on data = "{job.evaluation.data}" a model is trained for it.'
        )
    found = evaluate.run(_own_flags_only(arguments, flags), arguments.split, arguments.k)
    print(evaluate.as_json(found) if arguments.format == "json" else "\n".join(evaluate.as_text(found)))


def _audit(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import audit

    job = _own_flags_only(arguments, flags)
    logging.getLogger("models").setLevel(logging.WARNING)  # dozens of models
    found = audit.run(job, arguments.canaries, arguments.epsilon, arguments.runs)
    print(audit.as_json(found) if arguments.format == "json" else "\n".join(audit.as_text(found)))
    audit.check(found)


def _tune(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import page, tune

    job = _own_flags_only(arguments, flags)
    output = arguments.output or Path(f"{job.job.name}-tuning.html")
    if output.suffix == ".png":
        raise errors.BadRequestError(f"--output {output}: names the page; the PNG comes beside it, under the same name.")
    page.check_free(output, output.with_suffix(".png"))
    logging.getLogger("models.training").setLevel(logging.WARNING)  # dozens of models
    found = tune.run(
        job,
        arguments.epsilons or tune.EPSILONS,
        tune.Goal(arguments.target_recall, arguments.target_count_error),
        None if arguments.world is None else arguments.world == "events",
        arguments.k,
        arguments.users or tune.USERS,
    )
    tune.write(found, job.job.name, output)
    print("\n".join(tune.as_text(found)))


def _report(arguments: argparse.Namespace, flags: list[str]) -> None:
    from data import store
    from pipelines import config, report

    if arguments.job is None:
        if flags:
            raise config.JobFileError(f"{' '.join(flags)}: --section.key flags need a job file.")
        place = arguments.store or _remembered()
        name = place.name
    elif arguments.store is not None:
        raise config.JobFileError(f"--store {arguments.store}: give a job file or a store, not both.")
    else:
        job = _own_flags_only(arguments, flags)
        place, name = store.Store(job.job.store).local(), job.job.name
    report.run(place, arguments.output or Path(f"{name}-report.html"))


def _own_flags_only(arguments: argparse.Namespace, flags: list[str]) -> "config.Job":
    from pipelines import config

    job, others = config.load(arguments.job, flags)
    if others:
        raise config.JobFileError(f"{' '.join(others)}: this command runs no pipeline and takes only --section.key flags.")
    return job


def _query(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import query

    query.run(arguments.store or _remembered(), arguments.sql, arguments.format, sys.stdout.buffer)


def _pull(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import versions

    job = _own_flags_only(arguments, flags)
    print(versions.pull(job, arguments.directory))
    if arguments.directory is None:
        _remember(job)


def _key(arguments: argparse.Namespace, flags: list[str]) -> None:
    from data import vault
    from transforms.ingest import pseudonym

    (vault.add_key if arguments.encryption else pseudonym.write_key)(arguments.file)


def _rotate(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import rotate

    print("\n".join(rotate.run(_own_flags_only(arguments, flags))))


def _forget(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import config, forget

    job = _own_flags_only(arguments, flags)
    # Never as a flag: those are in the shell's history, and whoever has an account sees them while the command runs.
    try:
        given = sys.stdin.buffer.read() if arguments.ids is None else arguments.ids.read_bytes()
        ids = given.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise config.JobFileError(f"--ids {arguments.ids or '(standard input)'}: can't be read ({reason}).") from error
    print("\n".join(forget.run(job, ids)))


def _letters(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import rotate

    for letter in rotate.show(_own_flags_only(arguments, flags), arguments.attempt):
        print(letter)


def _synth(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import synth

    synth.run(arguments.directory, arguments.users, arguments.items, arguments.seed)


def _kafka(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import kafka

    directory = arguments.directory or kafka.default_directory()
    if arguments.action == "up":
        print("\n".join(kafka.up(directory, arguments.port, arguments.secure)))
    else:
        kafka.down(directory)


def _kafka_init(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import kafka

    kafka.init(_own_flags_only(arguments, flags))


def _flink(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import flink

    match arguments.action:
        case "up":
            directory = arguments.directory or flink.default_directory()
            print("\n".join(flink.up(directory, arguments.port, arguments.task_managers, arguments.slots)))
        case "down":
            flink.down(arguments.directory or flink.default_directory())
        case "status":
            print("\n".join(flink.status(arguments.master)))
        case "cancel":
            flink.cancel(arguments.job_name_or_id, arguments.master)


def _replay(arguments: argparse.Namespace, flags: list[str]) -> None:
    from pipelines import replay
    from transforms.ingest import kafka_client

    connection = kafka_client.Connection(
        arguments.bootstrap, arguments.security, arguments.ca_file, arguments.username, arguments.password_file
    )
    replay.run(
        replay.Replay(
            files=tuple(arguments.files),
            topic=arguments.topic,
            time_column=arguments.time_column,
            key=arguments.key,
            speed=arguments.speed,
            disorder_seconds=arguments.disorder,
            repeats=arguments.repeats,
            malformed=arguments.malformed,
            seed=arguments.seed,
            as_arrival=arguments.as_arrival,
            create=arguments.create,
        ),
        connection,
    )


def _state_file() -> Path:
    return state.directory() / "last_store"


def _remember(job: "config.Job") -> None:
    """Keeps where the job's database is here: `sottovoce query` takes it by default."""
    from data import store

    _state_file().parent.mkdir(parents=True, exist_ok=True)
    _state_file().write_text(str(store.Store(job.job.store).local().absolute()))


def _remembered() -> Path:
    if not _state_file().exists():
        raise errors.NothingThereError("no store was published to yet on this machine; name one with --store.")
    return Path(_state_file().read_text())


def _show_progress() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # What kafka-python has to say comes as an error of ours.
    handler.addFilter(lambda record: not record.name.startswith("kafka."))
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)
    for room in ("data", "transforms", "models", "runners", "pipelines"):
        logging.getLogger(room).setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
