"""One error that names everything wrong with a checkpoint."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; `problems` holds one line per thing wrong, each naming its file."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(problems))
        if len(self.problems) == 1:
            super().__init__(f"1 problem in the checkpoint: {self.problems[0]}")
        else:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            super().__init__(f"{len(self.problems)} problems in the checkpoint:\n{lines}")


def refuse(problems: Iterable[str]) -> None:
    """Ends with one `CheckpointError` of all problems, if there is any."""
    problems = list(problems)
    if problems:
        raise CheckpointError(problems)


class Problems(list):
    """Problems of several readings, so that one error names all."""

    def of(self, read: Callable[..., T], *args, **kwargs) -> T | None:
        """What `read(...)` returns, or None where it raises a `CheckpointError` or an OSError, which is kept."""
        try:
            return read(*args, **kwargs)
        except CheckpointError as error:
            self.extend(error.problems)
        except OSError as error:
            self.append(f"{error.filename}: {error.strerror}")
        return None

    def refuse(self) -> None:
        refuse(self)
