"""What many tests need: brokers."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import sanitizer
from tests.brokers import MOSQUITTO, Embedded, Mosquitto


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop the server runs on, whatever else is installed."""
    return "asyncio"


@pytest.fixture(scope="session")
def mosquitto_installed() -> None:
    """Skip what needs mosquitto where there is none; in CI (`REQUIRE_MOSQUITTO=1`) that is a failure."""
    if MOSQUITTO is None:
        missing = "mosquitto is not installed (Debian: apt-get install mosquitto; macOS: brew install mosquitto)"
        if os.environ.get("REQUIRE_MOSQUITTO") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture(autouse=True)
def no_known_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test hide the secrets of another."""
    monkeypatch.setattr(sanitizer, "_process", sanitizer._KnownValues())  # noqa: SLF001


@pytest.fixture
def make_mosquitto(mosquitto_installed: None, tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Make and start a mosquitto with the arguments of `Mosquitto` after its directory; it ends with the test."""
    with ExitStack() as brokers:

        def make(**options: Any) -> Mosquitto:
            directory = tmp_path / f"mosquitto-{len(list(tmp_path.iterdir()))}"
            return brokers.enter_context(Mosquitto(directory, **options))

        yield make


@pytest.fixture(scope="module")
def mosquitto(mosquitto_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A plain mosquitto that a module's tests share: no login, every topic open."""
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="module")
def embedded() -> Iterator[Embedded]:
    """The broker of `simulator/`, shared by a module's tests."""
    with Embedded() as broker:
        yield broker


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> Embedded | Mosquitto:
    """Each plain broker in turn: what a test claims holds for both."""
    plain: Embedded | Mosquitto = request.getfixturevalue(request.param)
    return plain
