"""Each host's log in the run directory: time, level, host and message, with the traceback of what stopped it."""

import contextlib
import io
import logging
import platform
import time
from collections.abc import Iterator

from etils import epath

from jaxift.errors import HostLost, Terminated, UserError

LOG = logging.getLogger("jaxift")
UPLOAD_SECONDS = 30.0
"""Between two writes of a log into an object store, which cannot append."""


class _Uploaded(logging.StreamHandler):
    """Keeps a log in memory, and writes the whole of it now and then."""

    def __init__(self, path: epath.Path):
        super().__init__(io.StringIO(path.read_text() if path.exists() else ""))
        self.stream.seek(0, io.SEEK_END)
        self.path, self._written = path, time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a line."""
        self.stream.write(self.format(record) + "\n")
        if time.monotonic() - self._written > UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what there is."""
        self.path.write_text(self.stream.getvalue())
        self._written = time.monotonic()


@contextlib.contextmanager
def opened(folder: epath.Path, process: int, processes: int = 1) -> Iterator[None]:
    """Writes what is logged inside to the end of `folder`/host-NNNN.log, and why it ends where it does not end well.

    Where one of several `processes` is stopped the log stays open: whoever ends it has something to say yet.
    """
    handler = _handler(folder / f"host-{process:04d}.log")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {platform.node()} %(message)s"))
    before = LOG.level, LOG.propagate
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # the console says what a person should know
    stays = False
    try:
        yield
        LOG.info("done")
    except (UserError, HostLost, Terminated) as error:
        LOG.error("%s", error, exc_info=True)
        raise
    except BaseException:
        LOG.exception("stopped")
        stays = processes > 1
        raise
    finally:
        handler.flush()
        if not stays:
            LOG.removeHandler(handler)
            handler.close()
            LOG.setLevel(before[0])
            LOG.propagate = before[1]


def _handler(path: epath.Path) -> logging.Handler:
    if "://" in str(path):
        return _Uploaded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return logging.FileHandler(path, encoding="utf-8")
