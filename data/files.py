"""Files that several hosts may share: below a path, or in an object store by its URL.

An object store is reached through Beam's FileSystems (s3://bucket/..., say), so it needs what Beam needs for it, and has what
all of them have: a file appears whole, nothing is renamed or locked, and whoever writes last wins. So names there are random or
say what is in the file, and the ledger tells which of them count.
"""

import contextlib
import datetime as dt
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

Name = str | os.PathLike[str]
"""A path, or a URL as text: as a Path it would lose a slash."""


def is_url(name: Name) -> bool:
    """Says whether a name is of an object store."""
    return "://" in str(name)


def join(name: Name, *parts: str) -> str:
    """Returns the name of what lies below another one."""
    return "/".join([str(name).rstrip("/"), *parts])


def make_private(directory: Name) -> None:
    """Makes a directory that its owner alone may enter, if it is missing; an object store has none."""
    if not is_url(directory):
        path = Path(directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True, mode=0o700)
        path.chmod(0o700)


def make_public(directory: Name) -> None:
    """Lets all who may enter a directory's parent enter it too."""
    if not is_url(directory):
        Path(directory).chmod(0o755)


@contextlib.contextmanager
def create(name: Name, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Writes a file that is there whole, and safe on disk, or not at all; one that was there is replaced.

    Directories are made if they are missing. An object store has rights of its own in place of a `mode`.
    """
    if is_url(name):
        # An upload can't be taken back: it begins when all is there.
        with tempfile.TemporaryFile() as draft:
            yield cast(BinaryIO, draft)
            draft.seek(0)
            with _beam().create(str(name), compression_type=_UNCOMPRESSED) as file:
                shutil.copyfileobj(draft, file, 1 << 20)
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as local:
        try:
            yield cast(BinaryIO, local)
            local.flush()
            os.fsync(local.fileno())
            os.fchmod(local.fileno(), mode)
            Path(local.name).replace(path)
        except BaseException:
            Path(local.name).unlink(missing_ok=True)
            raise
    sync(path.parent)


def write(name: Name, content: bytes, mode: int = 0o644) -> None:
    """Writes a file, as `create`."""
    with create(name, mode) as file:
        file.write(content)


def open_file(name: Name) -> BinaryIO:
    """Opens a file for reading, at any place.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_url(name):
        return Path(name).open("rb")
    return cast(BinaryIO, _beam().open(str(name), compression_type=_UNCOMPRESSED))


def read(name: Name) -> bytes:
    """Returns what is in a file.

    Raises:
        FileNotFoundError: there is none.
    """
    with open_file(name) as file:
        return file.read()


def exists(name: Name) -> bool:
    """Says whether there is a file."""
    return bool(_beam().exists(str(name))) if is_url(name) else Path(name).is_file()


def names(directory: Name) -> list[str]:
    """Returns the files below a directory, by their names from there on, in order; none where there is no directory.

    What begins with a dot is being written.
    """
    if is_url(directory):
        prefix = join(directory, "")
        [found] = _beam().match([f"{prefix}**"])
        return sorted(each.path.removeprefix(prefix) for each in found.metadata_list)
    paths = (path.relative_to(directory) for path in Path(directory).rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))


def modified(path: Path) -> dt.datetime:
    """When a file on disk was last written."""
    return dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)


def written(directory: Name) -> dict[str, dt.datetime]:
    """Returns when each of the files that `names` returns was last written, by its name; now, where a store doesn't say."""
    if is_url(directory):
        prefix = join(directory, "")
        [found] = _beam().match([f"{prefix}**"])
        now = dt.datetime.now(dt.UTC).timestamp()
        times = {each.path.removeprefix(prefix): each.last_updated_in_seconds or now for each in found.metadata_list}
        return {name: dt.datetime.fromtimestamp(seconds, dt.UTC) for name, seconds in sorted(times.items())}
    return {name: modified(Path(directory) / name) for name in names(directory)}


def delete(*files: Name) -> None:
    """Deletes files, all in one place; those that aren't there are no error."""
    if files and is_url(files[0]):
        _beam().delete([str(name) for name in files])
    else:
        for name in files:
            Path(name).unlink(missing_ok=True)


def delete_directory(directory: Name) -> None:
    """Deletes a directory, and all below it, if it is there."""
    if is_url(directory):
        delete(*(join(directory, name) for name in names(directory)))
    else:
        shutil.rmtree(directory, ignore_errors=True)


def sync(path: Path) -> None:
    """Makes sure that a file on disk, or the names in a directory, outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_UNCOMPRESSED = "uncompressed"


def _beam() -> Any:
    """Beam's FileSystems, loaded where there is a URL: whoever asks a store on disk needn't wait for Beam."""
    from apache_beam.io import filesystems
    from apache_beam.options import pipeline_options

    _share_models()
    if filesystems.FileSystems._pipeline_options is None:  # outside a pipeline nobody has said any
        filesystems.FileSystems.set_options(pipeline_options.PipelineOptions([]))
    return filesystems.FileSystems


@functools.cache
def _share_models() -> None:
    """Has botocore read its descriptions of services once: Beam makes a client for each call, which reads them anew."""
    with contextlib.suppress(ImportError):
        import botocore.session

        botocore.session.create_loader = functools.cache(botocore.session.create_loader)
