"""What the black-box audit measures, as tables for docs/privacy.md.

    python -m tests.audit.table [--runs 100000]

Fails where a claim is broken, or a control isn't caught.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.audit import blackbox


def cases(found: Sequence[blackbox.Row]) -> str:
    """Case by claim and bound, as Markdown."""
    lines = []
    for row in found:
        exact = "" if row.exact is None else f"{row.exact:.3g}"
        lines.append(f"| {row.case} | {row.unit} | {row.claimed:.3g} | {exact} | {row.measured:.3g} |")
    head = [
        "| case | unit | claimed | at most, by exact sums | measured, at least (95 %) |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def controls(found: dict[str, int | None]) -> str:
    """Control by runs, as Markdown; None: not caught."""
    lines = [f"| {name} | {'NOT CAUGHT' if runs is None else f'{runs:,}'} |" for name, runs in found.items()]
    return "\n".join(["| control | caught with how many runs |", "|---|---|", *lines])


def audit(directory: pathlib.Path, runs: int) -> tuple[list[blackbox.Row], dict[str, int | None]]:
    """Measures every case and every control."""
    audited = blackbox.Audited(directory)
    found = blackbox.rows(audited, runs)
    return found, {name: blackbox.caught_after(audited, control) for name, control in blackbox.CONTROLS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="The black-box audit's tables.")
    parser.add_argument("--runs", type=int, default=blackbox.RUNS, help="of each case, with the user and without")
    runs, began = parser.parse_args().runs, time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        found, caught = audit(pathlib.Path(directory), runs)
    print(f"{cases(found)}\n\n{controls(caught)}\n\n{runs:,} runs each; {time.monotonic() - began:.0f} s")
    return int(not all(row.is_within for row in found) or None in caught.values())


if __name__ == "__main__":
    sys.exit(main())
