"""Encryption of the operator's files where they lie: AES-256-GCM (NIST SP 800-38D), under the first of the keys.

A file of keys has one a line, `aes256:` and 64 hex digits: the first encrypts, and all decrypt. What is encrypted says which
key it is under, by 8 bytes of the key's SHA-256:

    file: MAGIC | key's name, 8 bytes | nonce, 12 bytes | ciphertext with its tag
    line: "sv1:" | the same in base64, without MAGIC

What isn't encrypted is read as it is: a job that gets a key later goes on with what it has. Nonces are random, so a key is good
for 2^32 files and lines (SP 800-38D, section 8.3).
"""

import base64
import binascii
import dataclasses
import hashlib
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from data import errors, files

MAGIC = b"sottovoce-aes256gcm\n"
_LINE = "sv1:"
_KEY = "aes256:"
_KEY_BYTES = 32
_NAME_BYTES = 8
_NONCE_BYTES = 12


class VaultError(errors.BadInputError):
    """The keys can't be used, or don't fit what is to be read. The message never shows a key."""


class DamagedError(VaultError):
    """What is to be read is not what was encrypted."""


@dataclasses.dataclass(frozen=True)
class Vault:
    """Encrypts and decrypts; without keys it leaves all as it is. Its text never shows a key."""

    keys: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)

    def seal(self, content: bytes) -> bytes:
        """Encrypts a file's content."""
        return MAGIC + self._encrypt(content) if self.keys else content

    def unseal(self, content: bytes, name: files.Name) -> bytes:
        """Decrypts a file's content; what isn't encrypted stays as it is.

        Args:
            name: what an error says.

        Raises:
            VaultError: it is under a key that isn't there; a DamagedError: it is damaged.
        """
        return self._decrypt(content[len(MAGIC) :], name) if content.startswith(MAGIC) else content

    def seal_line(self, line: str) -> str:
        """Encrypts a line of text, which has no line's end in it."""
        return _LINE + base64.b64encode(self._encrypt(line.encode())).decode() if self.keys else line

    def unseal_line(self, line: str, name: files.Name) -> str:
        """Decrypts a line of text; as `unseal`."""
        if not line.startswith(_LINE):
            return line
        try:
            content = base64.b64decode(line.removeprefix(_LINE), validate=True)
        except binascii.Error as error:
            raise _damaged(name) from error
        return self._decrypt(content, name).decode()

    def is_current(self, content: bytes) -> bool:
        """Says whether a file's content is encrypted under the first key; without keys: whether it isn't encrypted."""
        return content.startswith(MAGIC + _name(self.keys[0])) if self.keys else not content.startswith(MAGIC)

    def is_current_line(self, line: str) -> bool:
        """The same of a line."""
        if not self.keys:
            return not line.startswith(_LINE)
        # The letters that the name alone decides: the next one has bits of the nonce.
        known = base64.b64encode(_name(self.keys[0])).decode()[: _NAME_BYTES * 8 // 6]
        return line.startswith(_LINE + known)

    def _encrypt(self, content: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _name(self.keys[0]) + nonce + AESGCM(self.keys[0]).encrypt(nonce, content, None)

    def _decrypt(self, content: bytes, name: files.Name) -> bytes:
        key_name, nonce = content[:_NAME_BYTES], content[_NAME_BYTES:][:_NONCE_BYTES]
        key = next((key for key in self.keys if _name(key) == key_name), None)
        if len(nonce) < _NONCE_BYTES:
            raise _damaged(name)
        if key is None:
            raise VaultError(
                f"{name} is encrypted, "
                + ("under a key that is not in" if self.keys else "and there is no")
                + " privacy.encryption_key_file. Give the file that has its key: an old key is needed until `sottovoce rotate` "
                "has run with a newer one before it."
            )
        try:
            return AESGCM(key).decrypt(nonce, content[_NAME_BYTES + _NONCE_BYTES :], None)
        except InvalidTag as error:
            raise _damaged(name) from error


def read(path: Path | None) -> Vault:
    """Returns what encrypts under the keys of a file; None: what doesn't encrypt.

    Raises:
        VaultError: the file can't be read, or is not one of keys.
    """
    return Vault() if path is None else Vault(tuple(_key(line, path) for line in _lines(path)))


def add_key(path: Path) -> None:
    """Puts a new random key before those of a file, which is made if it is missing, readable by the owner alone.

    Raises:
        VaultError: it is not a file of keys, or can't be written.
    """
    before = _lines(path) if path.exists() else []
    for line in before:
        _key(line, path)
    try:
        files.write(path, "".join(f"{line}\n" for line in [_KEY + secrets.token_hex(_KEY_BYTES), *before]).encode(), 0o600)
    except OSError as error:
        raise VaultError(f"{path} can't be written ({error.strerror}).") from error


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        advice = "" if path.exists() else f" `sottovoce key {path} --encryption` makes one."
        raise VaultError(f"privacy.encryption_key_file = {path}: can't be read ({reason}).{advice}") from error
    if not lines:
        raise _no_keys(path)
    return lines


def _key(line: str, path: Path) -> bytes:
    """Not as a pseudonym key is written: neither can be taken for the other."""
    try:
        key = bytes.fromhex(line.removeprefix(_KEY)) if line.startswith(_KEY) else b""
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise _no_keys(path)
    return key


def _no_keys(path: Path) -> VaultError:
    return VaultError(
        f"privacy.encryption_key_file = {path}: must have a line for each key, {_KEY} and {2 * _KEY_BYTES} hex digits. "
        "`sottovoce key FILE --encryption` makes such a file, or puts a new key first in one."
    )


def _damaged(name: files.Name) -> DamagedError:
    return DamagedError(f"{name} is damaged: it is not what was encrypted. Put it back from a copy.")


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"sottovoce encryption key" + key).digest()[:_NAME_BYTES]
