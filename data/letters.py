"""Files of dead letters, one a line, encrypted line by line where there is a key (data.vault)."""

import io
from collections.abc import Callable, Iterator

from data import files, vault


def read(name: files.Name, keys: vault.Vault) -> Iterator[str]:
    """Yields the letters of a file.

    Raises:
        vault.VaultError: one is under a key that isn't there, or damaged.
    """
    return (keys.unseal_line(line, name) for line in _lines(name))


def rewrite(name: files.Name, keys: vault.Vault, keep: Callable[[str], bool] = lambda _: True) -> tuple[int, int]:
    """Writes a file anew, under the first key and with the letters to keep alone; a crash leaves the old or the new one.

    Returns:
        How many letters were encrypted anew, and how many were left out. Where both are 0 the file stays as it is.

    Raises:
        vault.VaultError: as `read`.
    """
    n_kept = n_current = n_dropped = 0
    for line in _lines(name):
        if keep(keys.unseal_line(line, name)):
            n_kept += 1
            n_current += keys.is_current_line(line)
        else:
            n_dropped += 1
    if n_current < n_kept or n_dropped:
        with files.create(name, 0o600) as file:
            for line in _lines(name):
                letter = keys.unseal_line(line, name)
                if keep(letter):
                    sealed = line if keys.is_current_line(line) else keys.seal_line(letter)
                    file.write(f"{sealed}\n".encode())
    return n_kept - n_current, n_dropped


def _lines(name: files.Name) -> Iterator[str]:
    with files.open_file(name) as file, io.TextIOWrapper(file, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line.removesuffix("\n")
