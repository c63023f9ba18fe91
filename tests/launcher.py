"""Starts one program in several processes of a few CPU devices each, as several hosts would run it."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# before anything touches a device; gloo's threads write into file 1, in pieces between each other's: Python leaves it
START = """
import os
import sys
sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", {devices})
jax.config.update("jax_cpu_collectives_implementation", "gloo")
"""
JOIN = """
from jaxift.parallel import hosts
hosts.initialize("127.0.0.1:{port}", {processes}, {index}, timeout=60)
"""


def run_processes(program, *arguments, processes=2, devices=2, timeout=120, join=True, code=0):
    """Runs `program` (Python text) in joined processes; returns the (output, errors) of each, as lists of lines.

    `{port}`, `{processes}`, `{index}`, `{devices}` in it are filled in; with `join=False` it joins the others itself.
    When a process ends with another exit code than `code`, or not within `timeout` seconds, all are killed.
    """
    with contextlib.ExitStack() as open_files:
        values = {"port": free_port(), "processes": processes, "devices": devices}
        started, files = [], []
        try:
            for index in range(processes):
                text = START + (JOIN if join else "") + program
                for name, value in {**values, "index": index}.items():
                    text = text.replace(f"{{{name}}}", str(value))
                # files: a pipe that nobody reads yet would stop its process when it is full
                files.append([open_files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)])
                started.append(_start(text, arguments, *files[-1]))
            _wait(started, code, timeout)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()
        told = [tuple(map(_lines, pair)) for pair in files]
    assert [process.returncode for process in started] == [code] * processes, told
    return told


def _start(text, arguments, out, err):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=err)


def _wait(started, code, timeout):
    """Returns when all have ended, one has failed, or the time is over."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended = [process.poll() for process in started]
        if None not in ended or set(ended) - {None, code}:
            return
        time.sleep(0.05)


def _lines(file):
    file.seek(0)
    return [line for line in file.read().splitlines() if line.strip()]


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
