"""A full disk, told as what it is whichever library met it."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAYINGS = ("No space left on device", "Disk quota exceeded", "File too large", "disk full")


class DiskFull(OSError):
    """Nothing more can be written; says what, where, and what to do. What was written before is whole."""


@contextmanager
def told_of_the_disk(what: str, folder: Path) -> Iterator[None]:
    """Turns an error of the block into `DiskFull` if a full disk is behind it, and another failure to write into an
    `OSError` that names `folder`."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if _is_full(error):
            free = shutil.disk_usage(_existing(folder)).free / 2**30
            raise DiskFull(
                f"{what} could not be written: no space left for {folder} ({free:.2f} GiB free); what was saved before "
                "is kept. Make room there (or lower config.keep, or raise the quota) and start the same command again"
            ) from error
        if isinstance(error, OSError):
            raise OSError(f"{what} could not be written to {folder}: {error}") from error
        raise


def _is_full(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "errno", None) in _FULL or any(saying in str(error) for saying in _SAYINGS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
