"""The command `backups`: what was deployed before a change, for a person to see and to put back."""

import asyncio

from backups import Backup, Backups
from config import Config
from coreflux import Coreflux
from deployment import ByHandError, put_back
from errors import BridgeError, InputError
from inbox import Inbox
from mqtt_client import MqttClient
from screen import Screen


def run_backups(act: str, backup_id: str | None, config: Config) -> int:
    """List, show or restore backups, and return the exit code.

    Raises:
        BridgeError: There is no such backup, or the broker did not take it back.
    """
    screen = Screen(highlight=False, soft_wrap=True, markup=False)
    backups = Backups(config.backups_dir)
    if act == "list":
        _list(screen, backups)
        return 0
    if backup_id is None:
        raise InputError(f"Which one? python server.py backups {act} ID; backups list shows them.")
    backup = backups.load(backup_id)
    if act == "show":
        _show(screen, backup)
        return 0
    return asyncio.run(_restore(screen, backups, backup, config))


def _list(screen: Screen, backups: Backups) -> None:
    found = backups.all()
    for backup in found:
        names = ", ".join(f"{each.kind} {each.name}" for each in backup.entities)
        screen.print(f"{backup.id}  {backup.reason:7} {backup.state:15} {backup.broker}  {names}")
    if not found:
        screen.print(f"There are no backups in {backups.directory}.")


def _show(screen: Screen, backup: Backup) -> None:
    screen.print(f"{backup.reason} at {backup.created} on {backup.broker}: {backup.state}")
    for each in backup.entities:
        screen.print(f"\n{each.kind} {each.name}:")
        screen.print("(there was none, or its source could not be seen)" if each.code is None else each.code)


async def _restore(screen: Screen, backups: Backups, backup: Backup, config: Config) -> int:
    """Put everything back, the last change first, as far as it goes; scripts are left to the person."""
    if backup.broker != config.broker.url:
        raise InputError(f"The backup is of {backup.broker}, and the settings name {config.broker.url}.")
    inbox = Inbox(config.bounds.buffer_max_messages, config.bounds.buffer_max_bytes)
    left = by_hand = 0
    async with MqttClient(config.broker, inbox) as broker:
        coreflux = Coreflux(broker)
        for each in reversed(backup.entities):
            try:
                await put_back(coreflux, each)
            except ByHandError as exc:
                by_hand += 1
                screen.print(f"BY HAND: {each.kind} {each.name}: {exc}")
            except BridgeError as exc:
                left += 1
                screen.print(f"NOT restored: {each.kind} {each.name}: {exc}")
            else:
                screen.print(f"{'removed' if each.code is None else 'restored'}: {each.kind} {each.name}")
    if not left:
        backups.mark(backup, "partly restored" if by_hand else "restored")
    return 1 if left or by_hand else 0
