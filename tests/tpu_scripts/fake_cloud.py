"""A cloud in a folder: fake `gcloud`, `kubectl` and `xpk` write down what they are asked, and hosts are folders."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"
FAKES = HERE / "fakes"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def make_checkout(checkout: Path) -> None:
    """The scripts in a small repository."""
    shutil.copytree(SCRIPTS, checkout / "tpu_scripts")
    (checkout / "pyproject.toml").write_text("[project]\nname = 'jaxift'\n")
    (checkout / "untracked.key").write_text("not for others")
    for command in (["init", "--quiet", "--template="], ["add", "tpu_scripts", "pyproject.toml"]):
        subprocess.run(["git", *command], cwd=checkout, check=True, env={"PATH": os.environ["PATH"]})


class Cloud:
    """The fakes' folder, and a checkout of its own."""

    def __init__(self, checkout: Path, folder: Path, nodes: int = 1, workers: int = 4):
        self.fake = folder / "fake"
        self.fake.mkdir(parents=True)
        self.home = folder / "home"
        self.home.mkdir()
        self.checkout = folder / "checkout"
        shutil.copytree(checkout, self.checkout)
        self.environment = {
            "PATH": f"{FAKES}:/usr/bin:/bin", "HOME": str(self.home), "FAKE": str(self.fake), "FAKE_BIN": str(FAKES),
            "FAKE_NODES": str(nodes), "FAKE_WORKERS": str(workers), "JAXIFT_POLL_SECONDS": "0",
        }  # fmt: skip

    def run(self, script: str, *arguments: str, **settings: str) -> Said:
        """One of the scripts; settings are the environment's JAXIFT_ variables."""
        return self.execute(["bash", str(self.checkout / "tpu_scripts" / script), *arguments], **settings)

    def execute(self, command: list[str], **settings: str) -> Said:
        environment = self.environment | {f"JAXIFT_{name}": value for name, value in settings.items()}
        with (self.fake / "stderr").open("w") as errors:
            done = subprocess.run(
                command, env=environment, cwd=self.home, stdout=subprocess.PIPE, stderr=errors, timeout=60, check=False
            )
        return Said(done.returncode, done.stdout.decode(), (self.fake / "stderr").read_text())

    def calls(self) -> list[list[str]]:
        """What the fakes were asked so far, exactly."""
        path = self.fake / "calls"
        return records(path) if path.exists() else []

    def put(self, name: str, text: str = "") -> None:
        path = self.fake / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def hosts(self) -> list[Path]:
        return sorted((self.fake / "hosts").glob("*"))

    def let_go(self) -> None:
        """Lets what runs on the hosts end, and waits for it."""
        (self.fake / "hold").unlink(missing_ok=True)
        for host in self.hosts():
            if (host / "jaxift/run/lock").exists():
                subprocess.run(["flock", "--timeout", "20", host / "jaxift/run/lock", "true"], check=True)

    def wait_for(self, name: str) -> None:
        """Until every host has the file."""
        deadline = time.monotonic() + 20
        while not all((host / name).exists() for host in self.hosts()):
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.02)

    def preempt(self) -> None:
        """Takes the hosts away, as a preemption does."""
        self.let_go()
        shutil.rmtree(self.fake / "hosts")
        self.put("state", "SUSPENDED\n")


def records(path: Path) -> list[list[str]]:
    """Argument lists, each argument ended by a zero byte and each list by a record separator."""
    found: list[list[str]] = [[]]
    for part in path.read_bytes().decode().split("\0")[:-1]:
        if part == "\x1e":
            found.append([])
        else:
            found[-1].append(part)
    return found[:-1]
