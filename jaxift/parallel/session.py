"""One process' part in a joined program, from joining to leaving: it watches the others, and tells them its end."""

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
import threading
import time

from jaxift.parallel.heartbeats import PERIOD, Heartbeats
from jaxift.parallel.hosts import client, host_names, named, of_another_host, process_count, process_index
from jaxift.parallel.native_output import NativeOutput
from jaxift.parallel.watchdog import Verdict, Watchdog

LOG = logging.getLogger("jaxift")


class Session:
    """Watches from its beginning on; `leave` it in any case."""

    def __init__(self, host_timeout: float, stall_timeout: float, native: NativeOutput | None = None):
        self.host_timeout, self.native = host_timeout, native
        self.heartbeats: Heartbeats | None = None
        self._ending, self._code = threading.Lock(), None
        if process_count() > 1:
            host_names()
            self.heartbeats = Heartbeats(client(), process_index(), process_count(), min(PERIOD, host_timeout / 5))
            self.heartbeats.start()
        self.watchdog = Watchdog(self.end, self.heartbeats, host_timeout, stall_timeout)
        self.watchdog.start()
        if native:
            native.on_abort(self._aborted)

    def end(self, verdict: Verdict) -> None:
        """Says why, and ends the process, whatever its other threads do; does not return."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # another thread is at it
        stacks = _stacks()
        if LOG.handlers:  # a run's log is open
            LOG.error("%s", verdict.line)
            LOG.error("where its threads are:\n%s", stacks)
        if verdict.stuck:
            print(stacks, file=sys.stderr)
        print(f"jaxift: error: {verdict.line}", file=sys.stderr, flush=True)
        self._close_log()
        if self.heartbeats:
            self.heartbeats.mark(verdict.code, verdict.line, abrupt=True)
            self._see_others_off(2 * self.heartbeats.period + 3)
        os._exit(verdict.code)

    def explain(self, error: Exception) -> None:
        """Waits until it is known which other host is gone, where an error may come of that; then does not return."""
        if self.heartbeats and of_another_host(error):
            time.sleep(self.host_timeout + 2 * self.heartbeats.period)

    def leave(self, code: int, line: str) -> None:
        """Tells the others this process' end, and waits for theirs; returns where all could part in peace."""
        if self.heartbeats is None:
            self.watchdog.stop()
            return
        if code:  # of a failure nothing changes any more, whatever the others come to
            self._code = code
            self.watchdog.stop()
        self.heartbeats.mark(code, line)
        deadline = time.monotonic() + self.host_timeout + 1
        while not self.heartbeats.all_ended() and time.monotonic() < deadline:
            if code and self._others_are_late():
                break
            time.sleep(0.05)
        together = self.heartbeats.all_ended() and not any(sign.abrupt for sign in self.heartbeats.signs.values())
        self._code = code
        self.watchdog.stop()
        self.heartbeats.stop()
        self._close_log()
        sys.stdout.flush()
        sys.stderr.flush()
        if not together:
            os._exit(code)
        import jax

        jax.distributed.shutdown()

    def _others_are_late(self) -> bool:
        """Whether one that is missed will not come any more."""
        assert self.heartbeats
        return any(age > self.host_timeout for age in self.heartbeats.silent(time.monotonic()).values())

    def _aborted(self) -> None:
        """JAX's client has aborted this process: a host is lost, most often the first, which is the coordinator's."""
        if self._code is not None:
            os._exit(self._code)
        now = time.monotonic()
        verdict = self.watchdog.missing(now, self.host_timeout / 2)
        for other, sign in sorted(self.heartbeats.signs.items()) if self.heartbeats else ():
            if sign.ended is not None and verdict is None:
                verdict = self.watchdog.followed(other)
        lost = f"{named(0)} is lost, the connection to it broke; start the same command again on all hosts"
        self.end(verdict or Verdict(3, lost))

    def _see_others_off(self, seconds: float) -> None:
        """The first process keeps the store open until the others have seen who is missing by themselves."""
        assert self.heartbeats
        deadline = time.monotonic() + seconds
        while process_index() == 0 and time.monotonic() < deadline and not self._all_accounted_for():
            time.sleep(0.05)

    def _all_accounted_for(self) -> bool:
        assert self.heartbeats
        now = time.monotonic()
        return all(age > self.host_timeout for age in self.heartbeats.silent(now).values())

    def _close_log(self) -> None:
        """Puts into the host's log what C++ printed, and what is still held of it."""
        if LOG.handlers and self.native and (text := self.native.text().strip()):
            LOG.info("printed by libraries:\n%s", text)
        for handler in LOG.handlers:
            with contextlib.suppress(OSError, ValueError):
                handler.flush()


def _stacks() -> str:
    """Where every Python thread is."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
