"""A leaderboard's folder as one archive, and back."""

from __future__ import annotations

import json
import platform
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from ftml_bench.errors import UsageError
from ftml_bench.files import opened, replacing
from ftml_bench.runs.reading import FILE, read_definition

OF_CELL = ("record.json", "curve.csv", "timing.csv", "measures.csv", "error.txt")
ENVIRONMENT = "environment.json"
MOST_BYTES = 2**30  # of all files of an archive together
MOST_FILES = 100_000


def pack(root: Path, archive: Path) -> None:
    """Writes a leaderboard's folder as an archive: definition, records, curves, tables, figures, and the packages that
    are installed here. States and TensorBoard's events stay out of it.

    The same files give the same bytes.

    :raises UsageError: there is no leaderboard in the folder, or the archive cannot be written.
    """
    definition = read_definition(root)
    files = [root / name for name in (FILE, "leaderboard.md", "leaderboard.csv", "seeds.csv", "report.html")]
    files += sorted((root / "figures").glob("[!.]*"))  # not what was left of the writing of one
    files += [root / cell.folder / name for cell in definition.cells() for name in OF_CELL]
    packages = sorted({f"{found.metadata['Name']} {found.version}" for found in distributions()}, key=str.lower)
    environment = {"python": platform.python_version(), "system": platform.platform(), "packages": packages}
    try:
        with replacing(archive) as file, zipfile.ZipFile(file, "w") as zipped:
            for path in filter(Path.is_file, files):
                _add(zipped, f"{definition.name}/{path.relative_to(root).as_posix()}", path.read_bytes())
            _add(zipped, f"{definition.name}/{ENVIRONMENT}", json.dumps(environment, indent=2).encode() + b"\n")
    except OSError as error:
        raise UsageError(f"{archive} cannot be written: {error.strerror or error}") from error


def _add(zipped: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name)  # of the year 1980, so that the clock changes no byte
    member.external_attr = 0o644 << 16
    zipped.writestr(member, content, zipfile.ZIP_DEFLATED)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A leaderboard's folder: `path` itself, or if that is a .zip, a temporary folder of what it holds.

    :raises UsageError: an archive that is damaged, too large, or holds anything but a leaderboard's folder.
    """
    if path.suffix.lower() != ".zip" or path.is_dir():
        yield path
        return
    with TemporaryDirectory() as temporary:
        with opened(path) as file:
            try:
                with zipfile.ZipFile(file) as zipped:
                    top = _checked(path, zipped)
                    zipped.extractall(temporary)
            except UsageError:
                raise
            except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, ValueError) as error:
                raise UsageError(f"{path} is no archive of a leaderboard: {error}") from error
        try:
            yield Path(temporary, top)
        except UsageError as error:  # of files that have their names here for a moment only
            raise UsageError(str(error).replace(str(Path(temporary, top)), str(path))) from error


def _checked(path: Path, zipped: zipfile.ZipFile) -> str:
    """The name of the folder that all files of an archive lie in; whatever could do harm is refused."""
    members = zipped.infolist()
    if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
        raise UsageError(f"{path} holds more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB: no leaderboard's")
    names = [member.filename for member in members]
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0"):
            raise UsageError(f"{path} holds a file outside of its folder: {name!r}")
    tops = {PurePosixPath(name).parts[0] for name in names}
    if len(tops) != 1 or f"{(top := tops.pop())}/{FILE}" not in names:
        raise UsageError(f"{path} is no archive of a leaderboard: expected one folder with {FILE} in it")
    return top
