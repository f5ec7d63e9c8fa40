"""Where a user's lasting state lies: what outlives every job and store."""

import os
from pathlib import Path


def directory() -> Path:
    """Returns the directory: that of the default ledger, and of the note which store was published to last."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "sottovoce"
