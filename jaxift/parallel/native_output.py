"""What the C++ libraries of a joined process print, and how they end it, kept away from the terminal.

When the coordinator is gone JAX's client prints a stack trace and aborts the process. Here what is printed goes into a
file, and a process that is aborted so can still say in one line whom it misses.
"""

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable

TAIL = 64 * 1024
OF_THE_COORDINATOR = ("JAX distributed service", "coordination service", "coordination_service")


class NativeOutput:
    """Takes over the file descriptors 1 and 2, and SIGABRT; Python's own output goes where it went before."""

    def __init__(self):
        self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115, as long as the process lives
        self._aborted: object = None
        for number, name in ((1, "stdout"), (2, "stderr")):
            before = getattr(sys, name)
            before.flush()
            if before.fileno() == number:
                setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="replace"))
            os.dup2(self._file.fileno(), number)

    def text(self) -> str:
        """The end of what was printed."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), TAIL, max(size - TAIL, 0)).decode(errors="replace")

    def on_abort(self, lost: Callable[[], None]) -> None:
        """Calls `lost`, which ends the process, where JAX's client aborts it because another process is gone.

        Python's own handlers would wait for the main thread, which may be inside a collective: it is C's that is set.
        """

        def handler(number: int) -> None:
            if any(sign in self.text() for sign in OF_THE_COORDINATOR):
                lost()
            print(self.text(), file=sys.stderr, flush=True)
            libc.signal(number, None)  # any other abort ends the process as it would have

        libc = ctypes.CDLL(None)
        self._aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
        libc.signal(signal.SIGABRT, self._aborted)
