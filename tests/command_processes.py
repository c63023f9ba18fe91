"""Starts one `jaxift` command as several processes of a few CPU devices each, to be stopped and killed on the way."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher import ROOT, free_port

PROGRAMS = tempfile.TemporaryDirectory()
"""What one run has compiled the next need not."""


class Processes:
    """The processes of one command; use as a context manager, so that none is left behind."""

    def __init__(self, *arguments, processes=2, devices=2, roots=None, each=None, join=True):
        """By process: `roots` that Python imports from, `each` its further arguments."""
        port, self.files, self.started = free_port(), [], []
        for index in range(processes):
            command = [sys.executable, "-m", "jaxift", *map(str, arguments), *(each or {}).get(index, ())]
            if join:
                command += [
                    "--coordinator",
                    f"127.0.0.1:{port}",
                    "--processes",
                    str(processes),
                    "--process",
                    str(index),
                ]
            environment = os.environ | {
                "PYTHONPATH": str((roots or {}).get(index, ROOT)), "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
                "JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": PROGRAMS.name,
            }  # fmt: skip
            self.files.append([tempfile.TemporaryFile("w+") for _ in range(2)])  # noqa: SIM115, closed at the end
            out, err = self.files[-1]
            folder = (roots or {}).get(index, ROOT)
            self.started.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=err))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        for file in [file for pair in self.files for file in pair]:
            file.close()

    def codes(self, timeout=240):
        """Exit codes when all have ended; those of processes that have not are None."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(process.poll() is None for process in self.started):
            time.sleep(0.05)
        return [process.poll() for process in self.started]

    def code(self, index, timeout=120):
        """Exit code of one of them when it has ended."""
        return self.started[index].wait(timeout)

    def said(self, index):
        """What one of them has printed, and its errors."""
        texts = []
        for file in self.files[index]:
            file.seek(0)
            texts.append(file.read())
        return texts

    def errors(self, index):
        """The lines of one's errors."""
        return self.said(index)[1].splitlines()

    def signal(self, index, number):
        """Sends a signal to one of them."""
        assert self.started[index].poll() is None, f"it ended before: {self.said(index)}"
        self.started[index].send_signal(number)

    def until(self, reached, timeout=240):
        """Waits for something that they do."""
        deadline = time.monotonic() + timeout
        while not reached():
            ended = [index for index, process in enumerate(self.started) if process.poll() is not None]
            assert not ended, f"process {ended[0]} ended before: {self.said(ended[0])}"
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)


def log(run: Path, index: int) -> str:
    """What a host's log says so far."""
    path = run / "logs" / f"host-{index:04d}.log"
    return path.read_text() if path.exists() else ""
