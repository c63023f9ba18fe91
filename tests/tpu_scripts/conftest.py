"""Clouds in folders, whose hosts are let go at the end."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cloud import Cloud

TOOLS = ("bash", "git", "flock", "setsid", "tar")


@pytest.fixture
def make_cloud(tmp_path: Path) -> Iterator[Callable[..., Cloud]]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the scripts' tests need {', '.join(missing)}")
    made: list[Cloud] = []

    def make(**size: int) -> Cloud:
        made.append(Cloud(tmp_path / f"cloud{len(made)}", **size))
        return made[-1]

    yield make
    for cloud in made:
        cloud.let_go()


@pytest.fixture
def cloud(make_cloud: Callable[..., Cloud]) -> Cloud:
    return make_cloud()
