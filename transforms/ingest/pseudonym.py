"""Privacy ids become keyed hashes at the first step: the raw id goes no further."""

import os
import secrets
import tempfile
from pathlib import Path

import pyarrow as pa

from data import errors, events
from transforms.privacy import keyed_hash

KEY_VARIABLE = "SOTTOVOCE_PSEUDONYM_KEY"
_KEY_BYTES = 32


class PseudonymKeyError(errors.BadInputError):
    """The pseudonym key is missing or unusable. The message never shows it."""


def pseudonymise(privacy_ids: pa.StringArray, key: bytes) -> pa.FixedSizeBinaryArray:
    """Replaces each id by its keyed hash, AES-256-CMAC, 16 bytes."""
    hashes = keyed_hash.keyed_hash(privacy_ids, key)
    return pa.FixedSizeBinaryArray.from_buffers(events.PSEUDONYM, len(hashes), [None, pa.py_buffer(hashes)])


def write_key(path: Path) -> None:
    """Writes a new random key, readable by the owner alone.

    Raises:
        PseudonymKeyError: a key is there already, or the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written whole under another name (mode 0600), then linked: a crash leaves no half a key.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
            path.hardlink_to(file.name)
    except FileExistsError as error:
        raise PseudonymKeyError(f"{path} is there already: a new key would make every user a new one. Keep it.") from error
    except OSError as error:
        raise PseudonymKeyError(f"{path} can't be written ({error.strerror}).") from error


def read_key(path: Path | None) -> bytes:
    """Returns the key of 32 bytes from the environment (SOTTOVOCE_PSEUDONYM_KEY) or else from a file, as 64 hex digits.

    Raises:
        PseudonymKeyError: neither is given, the file can't be read, or the text isn't 64 hex digits.
    """
    place, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
    if text is None:
        if path is None:
            raise PseudonymKeyError(f"No pseudonym key: set privacy.key_file or the variable {KEY_VARIABLE}.")
        place = f"privacy.key_file = {path}"
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            advice = "" if path.exists() else f" `sottovoce key {path}` makes one."
            raise PseudonymKeyError(f"{place}: can't be read ({reason}).{advice}") from error
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise PseudonymKeyError(f"{place}: must be {2 * _KEY_BYTES} hex digits. `sottovoce key FILE` makes such a file.")
    return key
