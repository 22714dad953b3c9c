"""Assemble the server, serve it over stdio or HTTP, close it; and the command line around that."""

import gc

# Importing the SDK makes some hundred thousand objects that stay: looking through them for garbage again and again
# took a tenth of the start (measured). What is alive when serving starts is then left out of all later collections.
gc.disable()

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import logs
from audit import Audit
from backups import Backups
from bridge import NAME, VERSION, Bridge, build_server
from config import ACCESS_MODES, ENV_FILE, Config, tokens_file
from copilot_client import CopilotClient
from errors import BridgeError, ConfigError
from inbox import Inbox
from mqtt_client import Broker, MqttClient
from replicas import Replicas
from rotation import rotating
from sanitizer import hide_secrets, make_sanitizer

__all__ = ["NAME", "VERSION", "Bridge", "build_server", "main", "open_broker", "serve_until_stopped"]

STOP_TIMEOUT_S: Final = 0.3
"""How long calls under way may take to end when the server is told to stop."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_broker(config: Config, audit: Audit) -> AsyncIterator[MqttClient]:
    """Keep the broker connection, and the embedded broker with its plant where that is asked for, while in context."""
    async with contextlib.AsyncExitStack() as stack:
        broker_config = config.broker
        if broker_config.embedded:
            from simulator.embedded import broker_with_plant  # noqa: PLC0415 - only this setting needs it

            embedded = await stack.enter_async_context(broker_with_plant(broker_config.port))
            broker_config = replace(broker_config, host=embedded.host, port=embedded.port)
        replica = secrets.token_hex(3) if config.transport == "http" else ""
        inbox = Inbox(config.bounds.buffer_max_messages, config.bounds.buffer_max_bytes, replica)
        yield await stack.enter_async_context(MqttClient(broker_config, inbox, audit.note))


async def serve_until_stopped(config: Config, read_again: Callable[[], Config]) -> None:
    """Serve until SIGTERM, Ctrl-C or the end of stdio; `read_again` gives the settings as they are by then."""
    stop = asyncio.Event()
    _on_signals(stop.set, "SIGTERM", "SIGINT", "SIGBREAK")
    async with (
        Audit(config.audit) as audit,
        open_broker(config, audit) as broker,
        CopilotClient(config.copilot) as copilot,
        _together(config, broker) as replicas,
    ):
        bridge = Bridge(config, broker, copilot, audit, replicas)
        async with (
            _transport(config, bridge, stop) as (until_stopped, renew_clients),
            rotating(
                config, read_again, partial(_renew, broker, copilot, audit, renew_clients), bridge.advise
            ) as look_now,
        ):
            await audit.record("started", version=VERSION, transport=config.transport, **_rules_in_words(config))
            _on_signals(look_now, "SIGHUP")
            gc.freeze()
            gc.enable()
            ended = await until_stopped()
    if not ended:
        # The SDK's thread still reads stdin and cannot be interrupted; everything else is closed by now.
        logging.shutdown()
        os._exit(0)


Served = tuple[Callable[[], Awaitable[bool]], Callable[[Config], None]]
"""Serves until it is time to stop, and says whether everything has ended; takes over who may come in."""


@asynccontextmanager
async def _transport(config: Config, bridge: Bridge, stop: asyncio.Event) -> AsyncIterator[Served]:
    """Serve MCP, and the figures where that is asked for, while in context."""
    async with contextlib.AsyncExitStack() as stack:
        if config.metrics:
            from http_server import figures_over_http  # noqa: PLC0415 - who has no HTTP pays nothing for it

            await stack.enter_async_context(figures_over_http(config, bridge))
        if config.transport == "stdio":
            yield partial(_over_stdio, bridge, config, stop), lambda _: None
            return
        from http_server import mcp_over_http  # noqa: PLC0415

        clients = await stack.enter_async_context(mcp_over_http(config, bridge))

        async def until_stopped() -> bool:
            await stop.wait()
            await clients.stop()
            return True

        yield until_stopped, clients.renew


async def _over_stdio(bridge: Bridge, config: Config, stop: asyncio.Event) -> bool:
    from stdio import serve_stdio  # noqa: PLC0415 - who serves HTTP pays nothing for it

    _on_closed_stdout(stop.set)
    serving = asyncio.create_task(serve_stdio(bridge.server(config.access_mode)), name="mcp.serve")
    stopping = asyncio.create_task(stop.wait(), name="signals")
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if serving.done():
        await serving
    else:
        serving.cancel()
        await asyncio.wait([serving], timeout=STOP_TIMEOUT_S)
    return serving.done()


@asynccontextmanager
async def _together(config: Config, broker: Broker) -> AsyncIterator[Replicas | None]:
    """Stay in touch with other replicas: those over HTTP that have the same AUDIT_KEY."""
    key = config.audit.key
    if config.transport == "stdio" or key is None:
        yield None
        return
    replicas = Replicas(broker, key.get_secret_value().encode())
    async with replicas.listening():
        yield replicas


def _renew(
    broker: MqttClient,
    copilot: CopilotClient,
    audit: Audit,
    renew_clients: Callable[[Config], None],
    config: Config,
) -> None:
    audit.note("secrets_rotated")
    broker.renew(config.broker)
    copilot.renew(config.copilot)
    renew_clients(config)


def _rules_in_words(config: Config) -> dict[str, Any]:
    """Write down for the record under which rules the server starts."""
    rules = {
        name: [each.text for each in value] if isinstance(value, tuple) else value
        for name, value in ((each.name, getattr(config.rules, each.name)) for each in fields(config.rules))
    }
    clients = {"clients": {each.name: each.access for each in config.http.clients}} if config.http.clients else {}
    return {"broker": config.broker.url, "access_mode": config.access_mode, "rules": rules, **clients}


def _on_signals(react: Callable[[], None], *names: str) -> None:
    """Have `react` called at each of the signals that the platform has."""
    loop = asyncio.get_running_loop()
    for name in names:
        if number := getattr(signal, name, None):
            try:
                loop.add_signal_handler(number, react)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(react))


def _on_closed_stdout(stop: Callable[[], None]) -> None:
    """Stop when nobody reads stdout any more; the SDK notices at the next answer, and then waits for stdin for ever."""
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if sys.platform != "win32" and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        loop = asyncio.get_running_loop()
        descriptor = os.dup(sys.stdout.fileno())

        def closed() -> None:
            loop.remove_reader(descriptor)
            logger.info("the client does not read any more")
            stop()

        loop.add_reader(descriptor, closed)  # the writing end of a pipe is readable when the other end is closed


def serve(env_file: Path) -> int:
    """Serve and return the exit code."""
    read = partial(Config.from_env, env_file=env_file)
    config = read()
    logs.set_up(config.logs)
    for warning in config.warnings:
        logger.warning("%s", warning)
    for backup in Backups(config.backups_dir).unfinished(config.broker.url):
        logger.warning("a change of %s did not end: see python server.py backups show %s", backup.created, backup.id)
    try:
        asyncio.run(serve_until_stopped(config, read))
    except* (BrokenPipeError, ConnectionResetError):
        logger.info("the client is gone")
    return 0


class _SecretiveParser(argparse.ArgumentParser):
    """A parser that repeats no secret which somebody gave as an argument."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit."""
        super().error(make_sanitizer()(message))


def _parser() -> argparse.ArgumentParser:
    parser = _SecretiveParser(prog="server.py", description="An MCP server for an MQTT broker.")
    parser.add_argument("--version", action="version", version=f"{NAME} {VERSION}")
    parser.add_argument(
        "--env-file", metavar="FILE", type=Path, default=ENV_FILE, help="settings instead of %(default)s"
    )
    parser.set_defaults(run=lambda options: serve(options.env_file))
    commands = parser.add_subparsers(metavar="COMMAND")
    setup = commands.add_parser("setup", help="ask for the settings, try each, write .env and the clients' files")
    setup.set_defaults(run=_setup)
    setup.add_argument("--dry-run", action="store_true", help="only show what would change")
    doctor = commands.add_parser("doctor", help="check everything from the settings to the broker, and say what to do")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--updates", action="store_true", help="also look the packages up at PyPI")
    doctor.add_argument(
        "--take-client-id",
        action="store_true",
        help="connect with MQTT_CLIENT_ID, to see whether another session uses it: that throws it out",
    )
    demo = commands.add_parser("demo", help="show the whole path in a minute, on the embedded broker or on yours")
    demo.set_defaults(run=_demo)
    where = demo.add_mutually_exclusive_group()
    where.add_argument("--broker", metavar="HOST:PORT", help="a broker of yours; login and TLS come from the settings")
    where.add_argument(
        "--coreflux", action="store_true", help="deploy, break and roll back LoT on a simulated Coreflux"
    )
    backups = commands.add_parser("backups", help="what was there before a deployment: list it, show it, put it back")
    backups.set_defaults(run=_backups)
    backups.add_argument("act", choices=["list", "show", "restore"])
    backups.add_argument("id", nargs="?", help="the backup_id of a deployment or removal")
    approve = commands.add_parser("approve", help="let the assistant do one thing that waits for a person")
    approve.set_defaults(run=_approve)
    approve.add_argument("id", nargs="?", help="which; without it, list what waits")
    policy = commands.add_parser("policy", help="explain what the assistant may do with a topic")
    policy.set_defaults(run=_policy)
    policy.add_argument("act", choices=["check"])
    policy.add_argument("what", choices=["publish", "subscribe"])
    policy.add_argument("topic", help="a topic, or for subscribe a topic filter")
    audit = commands.add_parser("audit", help="check the record of what the assistant did")
    audit.set_defaults(run=_audit)
    audit.add_argument("act", choices=["verify"])
    audit.add_argument("file", nargs="?", type=Path, help="instead of AUDIT_FILE")
    token = commands.add_parser("token", help="let another client in over HTTP")
    token.set_defaults(run=_token)
    token.add_argument("act", choices=["new"])
    token.add_argument("name", help="how the record calls the client")
    token.add_argument("--access", choices=ACCESS_MODES, required=True, help="what it may do")
    token.add_argument("--file", type=Path, help="instead of MCP_TOKENS_FILE")
    client = commands.add_parser("client-config", help="print the entry for an MCP client's configuration")
    client.set_defaults(run=_client_config)
    client.add_argument("client", choices=["claude-desktop", "claude-code", "cursor", "vscode"])
    client.add_argument("--name", default="coreflux", help="how the client calls the server (default: %(default)s)")
    client.add_argument("--url", help="where the server is, for a client that finds it over HTTP")
    how = client.add_mutually_exclusive_group()
    how.add_argument("--button", action="store_true", help="print a link that adds the entry (cursor, vscode)")
    how.add_argument("--install", action="store_true", help="put it into the client's file, which is copied first")
    client.add_argument("--project", metavar="FOLDER", type=Path, help="with --install: the file of a project")
    client.add_argument("--dry-run", action="store_true", help="with --install: only show what would change")
    return parser


# The commands; what only one of them needs is loaded with it.


def _demo(options: argparse.Namespace) -> int:
    from demo import run_demo  # noqa: PLC0415
    from demo_coreflux import run_demo_coreflux  # noqa: PLC0415

    return run_demo_coreflux() if options.coreflux else run_demo(options.broker, options.env_file)


def _doctor(options: argparse.Namespace) -> int:
    from doctor.command import Wishes, run_doctor  # noqa: PLC0415

    wishes = Wishes(as_json=options.json, updates=options.updates, take_client_id=options.take_client_id)
    return run_doctor(options.env_file, wishes)


def _backups(options: argparse.Namespace) -> int:
    from restore import run_backups  # noqa: PLC0415

    return run_backups(options.act, options.id, Config.from_env(env_file=options.env_file))


def _approve(options: argparse.Namespace) -> int:
    from oversight import run_approve  # noqa: PLC0415

    return run_approve(options.id, Config.from_env(env_file=options.env_file))


def _policy(options: argparse.Namespace) -> int:
    from oversight import run_policy_check  # noqa: PLC0415

    return run_policy_check(options.what, options.topic, Config.from_env(env_file=options.env_file))


def _audit(options: argparse.Namespace) -> int:
    from oversight import run_audit_verify  # noqa: PLC0415

    return run_audit_verify(options.file, Config.from_env(env_file=options.env_file))


def _token(options: argparse.Namespace) -> int:
    from tokens import run_token_new  # noqa: PLC0415

    return run_token_new(options.name, options.access, options.file or tokens_file(env_file=options.env_file))


def _client_config(options: argparse.Namespace) -> int:
    from onboarding.client_config import run_client_config  # noqa: PLC0415

    return run_client_config(
        options.client,
        options.name,
        options.env_file,
        url=options.url,
        button=options.button,
        to_file=options.install,
        project=options.project,
        dry_run=options.dry_run,
    )


def _setup(options: argparse.Namespace) -> int:
    from onboarding.dialogue import run_setup  # noqa: PLC0415

    return run_setup(options.env_file, dry_run=options.dry_run)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 could not, 2 wrong arguments or settings."""
    options = _parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ConfigError as exc:
        _complain(f"The settings cannot be used:\n{exc}")
        return 2
    except BridgeError as exc:
        _complain(str(exc))
        return 1


def _complain(text: str) -> None:
    # The operator has to see the paths of files that cannot be used.
    sys.stderr.write(hide_secrets(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
