"""What a user can mend: shown as one message with an exit code of its own, never as a traceback."""


class UserError(ValueError):
    """The base of all such errors. The message says what was given, the rule and the way out."""

    exit_code = 1


class BadRequestError(UserError):
    """The job file, a flag or a query is wrong."""

    exit_code = 2


class BadInputError(UserError):
    """What the job or a flag names can't be used: source, catalogue, key, Kafka broker."""

    exit_code = 3


class AlreadyReleasedError(UserError):
    """The release is another run's, or another store's: drawing it here would cost budget again."""

    exit_code = 4


class RefusedError(UserError):
    """The release was refused for its data: too many malformed rows. Nothing was spent."""

    exit_code = 5


class NothingThereError(UserError):
    """The step before has not been done: nothing is released, trained or published yet."""

    exit_code = 6
