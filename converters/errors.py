"""One error that tells everything wrong with a checkpoint."""

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint cannot be used; `problems` holds one line per thing wrong, each naming its file."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(dict.fromkeys(problems))
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{count} problem{'s' if count > 1 else ''} in the checkpoint:\n{lines}")


def refuse(problems: Iterable[str]) -> None:
    """Raises `CheckpointError` if there is any problem."""
    problems = list(problems)
    if problems:
        raise CheckpointError(problems)
