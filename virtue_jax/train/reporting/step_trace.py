"""A profiler trace of some steps, for TensorBoard's profile page or Perfetto."""

from pathlib import Path

import jax


class StepTrace:
    """Traces steps first..last (from 1) of this process into `folder`; `steps` empty = none. A run that resumes within
    them traces the rest."""

    def __init__(self, steps: tuple[int, ...], folder: Path):
        self._first, self._last = steps or (1, 0)
        self._folder, self._running = folder, False

    def before(self, step: int) -> None:
        if not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def ends_with(self, step: int) -> bool:
        """Whether the trace wants the step to be waited for, and then `after`."""
        return self._running and step >= self._last

    def after(self, step: int) -> bool:
        """Whether the trace is written now."""
        if self.ends_with(step):
            self.close()
            return True
        return False

    def close(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
