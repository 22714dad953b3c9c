"""The floor: paho alone. Commands: `publish HOST PORT N` and `receive HOST PORT N`; each prints one figure as JSON."""

import asyncio
import json
import resource
import socket
import statistics
import sys
import threading
import time
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion


def connect(host: str, port: int) -> Client:
    """Connect with MQTT 5 and without Nagle's algorithm."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    connected = threading.Event()

    def send_at_once(_client: Client, _data: object, stream: Any) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    client.on_socket_open = send_at_once
    client.on_connect = lambda *_: connected.set()
    client.connect(host, port)
    client.loop_start()
    connected.wait(5)
    return client


async def publish(client: Client, count: int) -> float:
    """Return the median of QoS 1 publishes awaited one after another, in ms."""
    loop = asyncio.get_running_loop()
    waiting: dict[int, asyncio.Future[None]] = {}

    def acknowledge(mid: int) -> None:
        waiting.pop(mid).set_result(None)

    def on_publish(_client: Client, _data: object, mid: int, *_: object) -> None:
        loop.call_soon_threadsafe(acknowledge, mid)

    client.on_publish = on_publish
    took = []
    for _ in range(count):
        started = time.perf_counter()
        info = client.publish("bench/paho", b"x" * 64, 1)
        waiting[info.mid] = loop.create_future()
        await waiting[info.mid]
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def receive(client: Client, count: int) -> float:
    """Return the CPU time per received message with a callback only, in us."""
    done = threading.Event()
    received = 0
    before = 0.0

    def on_message(*_: object) -> None:
        nonlocal received, before
        if not received:
            before = cpu_s()
        received += 1
        if received == count:
            done.set()

    def on_subscribe(*_: object) -> None:
        sys.stdout.write("subscribed\n")
        sys.stdout.flush()

    client.on_message = on_message
    client.on_subscribe = on_subscribe
    client.subscribe("bench/burst/#", 0)
    done.wait(60)
    return (cpu_s() - before) / count * 1e6


def cpu_s() -> float:
    """Return the CPU time used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    command, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    paho = connect(host, port)
    figure = asyncio.run(publish(paho, count)) if command == "publish" else receive(paho, count)
    sys.stdout.write(json.dumps(figure) + "\n")
