"""A Kafka broker on this machine, for trials: up and down."""

import json
import logging
from pathlib import Path

from data import errors, state
from runners import kafka

PORT = 9092
"""Where a new broker listens if nothing else is said."""

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """Returns the broker's directory: in the user's state directory, beside the ledger."""
    return state.directory() / "kafka"


def up(directory: Path, port: int | None, secure: bool) -> list[str]:
    """Starts the broker in the background if it isn't running; returns the lines of a job file that reach it.

    Args:
        port: None: that of the broker that was here before, or else PORT.

    Raises:
        errors.BadInputError: it can't be started.
    """
    try:
        broker = kafka.Broker(directory, secure=secure)
        if broker.is_running():
            broker.wait()
            log.info("Kafka is running already at %s, in %s", broker.bootstrap, broker.directory)
        else:
            broker.port = port or broker.port or PORT
            broker.start()
            log.info("Kafka %s is up at %s, in %s", kafka.VERSION, broker.bootstrap, broker.directory)
    except (kafka.BrokerError, OSError) as error:
        raise errors.BadInputError(f"kafka: {error}") from error
    settings = {"bootstrap": broker.bootstrap}
    if broker.secure:
        settings |= {
            "security": "sasl_ssl",
            "ca_file": str(broker.ca_file),
            "username": kafka.ADMIN,
            "password_file": str(broker.password_file()),
        }
    # A JSON string is a TOML string.
    return [f"{name} = {json.dumps(value)}" for name, value in settings.items()]


def down(directory: Path) -> None:
    """Stops the broker, if it is running; its data stay.

    Raises:
        errors.BadInputError: it can't be stopped.
    """
    try:
        was_running = kafka.Broker(directory).stop()
    except (kafka.BrokerError, OSError) as error:
        raise errors.BadInputError(f"kafka: {error}") from error
    log.info("Kafka is down; its data stay in %s" if was_running else "no Kafka is running in %s", directory)


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("kafka")
