"""What the black-box audit measures, as tables for docs/privacy.md, row by row as they come.

    python -m tests.audit.table [--runs 100000]

Fails where a claim is broken, or a control isn't caught.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

from tests.audit import blackbox

CASES = "| case | unit | claimed | at most, by exact sums | measured, at least (95 %) |\n|---|---|---|---|---|"
CONTROLS = "\n| control | caught with how many runs |\n|---|---|"


def case(row: blackbox.Row) -> str:
    """A line of Markdown."""
    return f"| {row.case} | {row.unit} | {row.claimed:.3g} | {row.exact:.3g} | {row.measured:.3g} |"


def control(name: str, runs: int | None) -> str:
    """A line of Markdown; runs None: not caught."""
    return f"| {name} | {'NOT CAUGHT' if runs is None else f'{runs:,}'} |"


def audit(directory: pathlib.Path, runs: int, say: Callable[[str], None]) -> tuple[list[blackbox.Row], dict[str, int | None]]:
    """Measures every case and every control, and says what comes of each."""
    audited, rows, caught = blackbox.Audited(directory), [], {}
    say(CASES)
    for row in blackbox.rows(audited, runs):
        rows.append(row)
        say(case(row))
    say(CONTROLS)
    for name, each in blackbox.CONTROLS.items():
        caught[name] = blackbox.caught_after(audited, each)
        say(control(name, caught[name]))
    return rows, caught


def main() -> int:
    parser = argparse.ArgumentParser(description="The black-box audit's tables.")
    parser.add_argument("--runs", type=int, default=blackbox.RUNS, help="of each case, with the user and without")
    runs, began = parser.parse_args().runs, time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        rows, caught = audit(pathlib.Path(directory), runs, lambda line: print(line, flush=True))
    print(f"\n{runs:,} runs each; {time.monotonic() - began:.0f} s, {time.process_time():.0f} s of one core")
    return int(not all(row.is_within for row in rows) or None in caught.values())


if __name__ == "__main__":
    sys.exit(main())
