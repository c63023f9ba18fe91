"""Clouds in folders, whose hosts are let go at the end."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cloud import Cloud, make_checkout

TOOLS = ("bash", "git", "flock", "setsid", "tar")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the scripts' tests need {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("template") / "checkout"
    make_checkout(folder)
    return folder


@pytest.fixture
def make_cloud(checkout: Path, tmp_path: Path) -> Iterator[Callable[..., Cloud]]:
    made: list[Cloud] = []

    def make(**size: int) -> Cloud:
        made.append(Cloud(checkout, tmp_path / f"it's cloud {len(made)}", **size))
        return made[-1]

    yield make
    for cloud in made:
        cloud.let_go()


@pytest.fixture
def cloud(make_cloud: Callable[..., Cloud]) -> Cloud:
    return make_cloud()
