"""Directories and files that appear whole or not at all, whatever kills the process that writes them."""

import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(directory: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling to fill; renamed to `directory` when the block succeeds, removed when it fails.

    Whatever stood at `directory` stays until then. Leftovers of killed processes are removed.

    Raises:
        FileExistsError: `directory` is there, not empty, and `overwrite` is false.
    """
    final = Path(directory).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final)
    refuse_occupied(final, overwrite=overwrite)
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        yield temporary
        _sync(temporary)
        _put_in_place(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(f"{final} was not written: {error}") from error
        raise


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, with its ending, to write to; renamed to `path` when the block succeeds, removed
    when it fails. What stood at `path` stays until then. Leftovers of killed processes are removed.

    Raises:
        OSError: as the system says it; names `path`.
    """
    final = Path(path).absolute()
    temporary = _temporary(final)
    try:
        _remove_leftovers(final)
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        raise OSError(error.errno, f"{path} was not written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file that is at every moment the old or the new one, whole.

    Raises:
        OSError: as the system says it; names the file.
    """
    with new_file(path) as temporary:
        temporary.write_text(text)


def refuse_occupied(directory: str | os.PathLike, *, overwrite: bool) -> None:
    """Raises `FileExistsError` if `directory` is there, not empty, and may not be overwritten."""
    final = Path(directory).absolute()
    occupied = final.exists() and (not final.is_dir() or any(final.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{final} exists; choose another place or overwrite it explicitly (--overwrite)")


def refuse_inputs(directory: str | os.PathLike, inputs: Iterable[str | os.PathLike | None]) -> None:
    """Raises `FileExistsError` if one of `inputs` is `directory` or lies in it: put in its place, the result would
    delete what it was made of."""
    final = Path(directory).resolve()
    for source in inputs:
        if source is not None and Path(source).resolve().is_relative_to(final):
            raise FileExistsError(f"{final} holds {source}, which is read and would be deleted; choose another place")


def _temporary(final: Path) -> Path:
    """Where this process writes what `final` will be."""
    return final.with_name(f"{_prefix(final, 'incomplete')}{os.getpid()}{final.suffix}")


def _prefix(final: Path, state: str) -> str:
    return f".{final.name}.{state}.{socket.gethostname()}."


def _put_in_place(temporary: Path, final: Path) -> None:
    replaced = temporary.with_name(temporary.name.replace(".incomplete.", ".replaced."))
    existed = final.exists()
    if existed:
        os.rename(final, replaced)
    try:
        os.rename(temporary, final)
    except BaseException:
        if existed:
            os.rename(replaced, final)
        raise
    _sync_directory(final.parent)
    if existed:
        shutil.rmtree(replaced, ignore_errors=True)


def _remove_leftovers(final: Path) -> None:
    for state in ("replaced", "incomplete"):
        prefix = _prefix(final, state)
        for leftover in [path for path in final.parent.iterdir() if path.name.startswith(prefix)]:
            owner = leftover.name.removeprefix(prefix).removesuffix(final.suffix)
            if not owner.isdigit() or _alive(int(owner)):
                continue
            if state == "replaced" and not final.exists():
                os.rename(leftover, final)  # killed between the two renames of `_put_in_place`
            elif leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root) / name, "rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(root))


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
