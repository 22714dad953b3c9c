"""The demo as a person runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import Mosquitto, Watcher
from tests.documentation import ROOT

BOUND_S = 60


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MQTT_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "--env-file", os.devnull, "demo", *arguments],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


@pytest.fixture(scope="module")
def shown() -> "subprocess.CompletedProcess[str]":
    """One run on the embedded broker, with settings of the person's own that must not matter."""
    return run(MQTT_BROKER="example.invalid", MQTT_USE_TLS="true", ACCESS_MODE="read")


def test_it_shows_every_step_on_the_embedded_broker_and_ends_well(shown: "subprocess.CompletedProcess[str]") -> None:
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for tool in (
        "server_status",
        "mqtt_topics",
        "mqtt_read",
        "mqtt_subscribe",
        "mqtt_publish",
        "mqtt_wait",
        "mqtt_messages",
        "mqtt_request",
        "mqtt_unsubscribe",
    ):
        assert f"{tool}(" in shown.stdout
    assert "Everything was as it should be" in shown.stdout


def test_it_shows_a_mistake_being_refused(shown: "subprocess.CompletedProcess[str]") -> None:
    assert "contains a wildcard" in shown.stdout


@pytest.mark.usefixtures("mosquitto_installed")
def test_on_a_broker_of_ones_own_it_leaves_nothing_behind(tmp_path: Path) -> None:
    users = {"me": "secret-of-mine"}
    with Mosquitto(tmp_path, users=users) as broker:
        done = run("--broker", f"{broker.host}:{broker.port}", MQTT_USER="me", MQTT_PASSWORD=users["me"])
        with Watcher(broker, "#") as watcher:
            left = [message for message in watcher.seen if message.retain]

    assert done.returncode == 0, done.stdout + done.stderr
    assert left == []
    assert users["me"] not in done.stdout + done.stderr


@pytest.mark.usefixtures("mosquitto_installed")
def test_it_works_on_a_broker_that_speaks_mqtt_3_1_1_only(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, only_311=True) as broker:
        done = run("--broker", f"{broker.host}:{broker.port}")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "MQTT 3.1.1" in done.stdout


def test_it_shows_lot_on_the_coreflux_personality(tmp_path: Path) -> None:
    """The settings are the person's own, and so is the folder: neither may matter, or be touched."""
    done = run("--coreflux", MQTT_BROKER="example.invalid", ACCESS_MODE="read", XDG_STATE_HOME=str(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything was as it should be" in done.stdout
    for tool in ("server_status", "lot_check", "lot_deploy", "lot_list", "lot_run_action", "lot_show", "lot_remove"):
        assert f"{tool}(" in done.stdout
    assert "line 9, column 5: SET needs WITH" in done.stdout
    assert "The deployment failed." in done.stdout
    assert "it was rolled back" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_coreflux_personality_and_a_broker_of_ones_own_exclude_each_other() -> None:
    done = run("--coreflux", "--broker", "127.0.0.1:1")

    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_a_broker_that_is_not_there_is_said_so_and_ends_badly() -> None:
    done = run("--broker", "127.0.0.1:1")

    assert done.returncode == 1
    assert "nothing listens there" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_address_that_is_none_is_refused() -> None:
    done = run("--broker", "not a host")

    assert done.returncode == 2
    assert "MQTT_BROKER" in done.stderr
