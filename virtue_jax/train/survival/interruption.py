"""SIGTERM and SIGINT: the run saves and ends, and says with its exit status that it wants to be started again."""

import signal
import threading


class Interrupted(BaseException):
    """The run was told to stop; nothing that a checkpoint had is lost. Its message is for a person.

    Not an `Exception`, so that nothing between the signal and the command takes it for a failure of its own.
    together: all processes of the run end with it.
    """

    def __init__(self, message: str, *, together: bool = False):
        super().__init__(message)
        self.together = together


class StopSignal:
    """While entered in the main thread: the first SIGTERM or SIGINT is kept in `received` for the loop to see; where no
    loop looks (`deferred` is false: starting, or writing the model), it raises `Interrupted` at once. A second SIGINT
    is a `KeyboardInterrupt` as ever."""

    def __init__(self):
        self.received = ""
        self.deferred = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._before.clear()

    def _receive(self, number: int, _frame) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        again = bool(self.received)
        self.received = signal.Signals(number).name
        if not self.deferred and not again:
            raise Interrupted(f"{self.received}: stopped outside of training; start the same command again")
