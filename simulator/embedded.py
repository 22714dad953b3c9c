"""The development broker with a plant on it, for `MQTT_BROKER=embedded`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from simulator.broker import Broker
from simulator.plant import Plant

VERSION_TOPIC = "$SYS/broker/version"  # where mosquitto says what it is


@asynccontextmanager
async def broker_with_plant(port: int) -> AsyncIterator[Broker]:
    """Run both; port 0 takes a free one."""
    async with Broker(port) as broker, running(Plant(broker.host, broker.port)):
        broker.publish(VERSION_TOPIC, b"development broker, not for production", retain=True)
        yield broker


@asynccontextmanager
async def running(plant: Plant) -> AsyncIterator[None]:
    """Run a plant, which blocks while it connects and while it tidies up."""
    try:
        await asyncio.to_thread(plant.start)
        yield
    finally:
        await asyncio.to_thread(plant.stop)
