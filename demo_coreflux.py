"""The demo of LoT: deploy, run, break and roll back, on the development broker's Coreflux personality."""

import os
import tempfile
import textwrap
from contextlib import AsyncExitStack
from typing import Any, Final

from config import NAMES, environment
from demo import Demo, connected, present, served
from screen import Screen
from simulator.broker import Broker
from simulator.coreflux import ACCOUNTS, Coreflux
from simulator.faults import Fault, Wrong

_USER: Final = "root"

_WITH_MISTAKES: Final = """\
DEFINE MODEL PumpState COLLAPSED WITH TOPIC "plant/pump1/state"
    ADD DOUBLE "flow" WITH TOPIC "plant/pump1/flow" AS TRIGGER
    ADD DOUBLE "flow_per_minute" WITH VALUE 60

DEFINE ACTION Spread
INPUT hi AS DOUBLE
INPUT lo AS DOUBLE
DO
    SET "gap" ({hi} - {lo})
RETURN
    OUTPUT gap
"""

_RIGHT: Final = """\
DEFINE MODEL PumpState COLLAPSED WITH TOPIC "plant/pump1/state"
    ADD DOUBLE "flow" WITH TOPIC "plant/pump1/flow" AS TRIGGER
    ADD DOUBLE "flow_per_minute" WITH (flow * 60)

DEFINE ACTION Spread
INPUT hi AS DOUBLE
INPUT lo AS DOUBLE
DO
    SET "gap" WITH ({hi} - {lo})
RETURN
    OUTPUT gap
"""

_NEWER: Final = _RIGHT.replace("(flow * 60)", "(flow * 3600)").replace("per_minute", "per_hour").replace("gap", "width")


async def _check(demo: Demo) -> None:
    demo.say("LoT with mistakes is found out before the broker sees it")
    _quote(demo, _WITH_MISTAKES)
    checked = await demo.call("lot_check", code=_WITH_MISTAKES)
    for problem in checked["problems"]:
        demo.tell(f"line {problem['line']}, column {problem['column']}: {problem['message']}")
    demo.tell(checked["verdict"])
    wrong = {problem["line"] for problem in checked["problems"] if problem["severity"] == "error"}
    demo.check("both mistakes are found, in lines 3 and 9", wrong == {3, 9})

    demo.say("The same without mistakes")
    checked = await demo.call("lot_check", code=_RIGHT)
    demo.tell(", ".join(f"{each['kind']} {each['name']} in line {each['line']}" for each in checked["definitions"]))
    demo.tell(checked["verdict"])
    kinds = [each["kind"] for each in checked["definitions"]]
    demo.check("a model and an action, and no problem", kinds == ["model", "action"] and not checked["problems"])


async def _deploy(demo: Demo) -> None:
    demo.say("What would change? Nothing is sent yet")
    planned = await demo.call("lot_deploy", code=_RIGHT, dry_run=True)
    _tell_plan(demo, planned)
    demo.check("both would be new", {step["change"] for step in planned["plan"]} == {"create"})
    demo.check("the broker still has neither", not await _listed(demo))

    demo.say("Deploy both, as one transaction")
    deployed = await demo.call("lot_deploy", code=_RIGHT)
    demo.tell(f"applied: {', '.join(deployed['applied'])}; backup {deployed['backup_id']}")
    demo.check("the model came first, then the action", deployed["applied"] == ["model PumpState", "action Spread"])
    demo.check("the broker has both", await _listed(demo) == ["action Spread", "model PumpState"])

    demo.say("Run the action")
    high, low = 7.5, 3
    ran = await demo.call("lot_run_action", name="Spread", arguments={"hi": high, "lo": low})
    demo.tell(f"{ran['message']} outputs: {ran['data']['outputs']}")
    demo.check(f"it said what {high} - {low} is", float(ran["data"]["outputs"]["gap"]) == high - low)


async def _break(demo: Demo, personality: Coreflux) -> None:
    demo.say("A newer version of both, and the broker fails in the middle")
    _tell_plan(demo, await demo.call("lot_deploy", code=_NEWER, dry_run=True))
    before = personality.entities()
    personality.inject(Fault(Wrong.FAILING, "AddAction"))
    text, answer = await demo.call_badly("lot_deploy", code=_NEWER)
    for line in textwrap.wrap(text):
        demo.tell(line)
    for problem in answer["problems"]:
        demo.tell(f"the broker says, line {problem['line']}, column {problem['column']}: {problem['message']}")
    demo.check("it is an error of the action, whose turn is after the model's", "refused the action Spread" in text)
    demo.check("it was rolled back, and nothing counts as applied", answer["rolled_back"] and not answer["applied"])

    demo.say("What runs now?")
    shown = await demo.call("lot_show", kind="model", name="PumpState")
    _quote(demo, shown["code"])
    demo.check("the model has its old source again", shown["code"].strip() == before["Model", "PumpState"].strip())
    shown = await demo.call("lot_show", kind="action", name="Spread")
    demo.check("the action has its old source", shown["code"].strip() == before["Action", "Spread"].strip())
    demo.check("the broker itself, asked past the server, has what it had before", personality.entities() == before)


async def _remove(demo: Demo) -> None:
    demo.say("Tidy up")
    for kind, name in (("action", "Spread"), ("model", "PumpState")):
        removed = await demo.call("lot_remove", kind=kind, name=name)
        demo.tell(f"removed; its source is kept in backup {removed['backup_id']}")
    demo.check("nothing of the demo is left at the broker", not await _listed(demo))


async def _listed(demo: Demo) -> list[str]:
    """List what was deployed; rules are the broker's own here."""
    listed = await demo.call("lot_list")
    found = [f"{each['kind']} {each['name']}" for each in listed["entities"] if each["kind"] != "rule"]
    demo.tell(", ".join(found) or "nothing but the broker's own rules")
    return found


def _tell_plan(demo: Demo, planned: dict[str, Any]) -> None:
    for step in planned["plan"]:
        demo.tell(f"{step['change']} {step['kind']} {step['name']}")
        _quote(demo, step["diff"])


def _quote(demo: Demo, text: str) -> None:
    for line in text.splitlines():
        demo.tell(f"  | {line}".rstrip())


async def _run(console: Screen) -> None:
    async with AsyncExitStack() as stack:
        personality = Coreflux()
        broker = await stack.enter_async_context(Broker(personality=personality))
        state = stack.enter_context(tempfile.TemporaryDirectory())
        settings = {
            "MQTT_BROKER": broker.host,
            "MQTT_PORT": str(broker.port),
            "MQTT_USER": _USER,
            "MQTT_PASSWORD": ACCOUNTS[_USER].password,
            "ACCESS_MODE": "admin",
            # Where backups go: here the folder of the person's own must not be touched.
            "XDG_STATE_HOME": state,
            "WIN_PD_OVERRIDE_LOCAL_APPDATA": state,
        }
        # Settings of the person's own are for a broker of the person's own.
        child_environment = environment(without=NAMES, **settings)
        demo = await stack.enter_async_context(served(console, child_environment, "--env-file", os.devnull))
        await connected(demo)
        await _check(demo)
        await _deploy(demo)
        await _break(demo, personality)
        await _remove(demo)


def run_demo_coreflux() -> int:
    """Run the demo and return the exit code."""
    return present(
        "Starting the development broker as a Coreflux broker. It is built from what is published and is none: how "
        "yours answers, only yours can say.",
        _run,
    )
