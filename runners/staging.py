"""What a job sends along for workers that haven't its code: ours as a wheel, and the hashes of all that is staged."""

import copy
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from apache_beam.options import pipeline_options
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

_NAME = "sottovoce"
# Of what lies in our folders (in a checkout's `data/`, somebody's events, say) no more than is ours.
_SUFFIXES = (".lock", ".mako", ".py", ".sql")
# The same files give the same wheel, which workers then have already.
_DATE = (1980, 1, 1, 0, 0, 0)
# What Beam puts into a directory of its own, which it leaves behind.
_BEAMS = ("extra_packages.txt", "workflow.tar.gz", "pickled_main_session")


def with_code(options: pipeline_options.PipelineOptions, directory: Path) -> pipeline_options.PipelineOptions:
    """Returns the options with ours as one more extra package, written into the directory.

    A setup file is taken to bring ours along, and so is an extra package of its name.
    """
    given = options.view_as(pipeline_options.SetupOptions)
    extra = given.extra_packages or []
    if given.setup_file or any(Path(path).name.startswith(f"{_NAME}-") for path in extra):
        return options
    options = copy.deepcopy(options)
    options.view_as(pipeline_options.SetupOptions).extra_packages = [*extra, str(pack(directory))]
    return options


def pack(directory: Path) -> Path:
    """Writes a wheel of our packages as they are imported here: of an installed one there is no setup.py to build with."""
    ours = metadata.distribution(_NAME)
    info = f"{_NAME}-{ours.version}.dist-info"
    files = {
        name: path.read_bytes() for package in (ours.read_text("top_level.txt") or "").split() for name, path in _files(package)
    }
    files[f"{info}/METADATA"] = (ours.read_text("METADATA") or ours.read_text("PKG-INFO") or "").encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: sottovoce\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    wheel = directory / f"{_NAME}-{ours.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return wheel


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """The files of a package and of those below it, by their names in a wheel."""
    spec = util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or []:
        for init in sorted(Path(folder).rglob("__init__.py")):
            for path in sorted(init.parent.iterdir()):
                if path.suffix in _SUFFIXES:
                    yield str(package / path.relative_to(folder)), path


def _staged(pipeline: beam_runner_api_pb2.Pipeline) -> dict[str, Path]:
    """The files that a pipeline stages, by their staged names."""
    return {
        beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name: Path(
            beam_runner_api_pb2.ArtifactFilePayload.FromString(artifact.type_payload).path
        )
        for environment in pipeline.components.environments.values()
        for artifact in environment.dependencies
        if (artifact.type_urn, artifact.role_urn)
        == (common_urns.artifact_types.FILE.urn, common_urns.artifact_roles.STAGING_TO.urn)
    }


def hashes(pipeline: beam_runner_api_pb2.Pipeline) -> str:
    """The SHA-256 of each staged file, as JSON: Flink hands the files on without."""
    return json.dumps({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _staged(pipeline).items()})


def clear(pipeline: beam_runner_api_pb2.Pipeline) -> None:
    """Deletes the directory that Beam has made for a pipeline's files and leaves behind."""
    for name, path in _staged(pipeline).items():
        if name in _BEAMS and path.parent.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(path.parent, ignore_errors=True)
