"""The commands with which a person oversees the assistant: `approve`, `policy check` and `audit verify`."""

import sys
from pathlib import Path

from approvals import Approvals
from audit import verify
from config import Config
from errors import BridgeError, InputError
from policy import Policy
from screen import Screen
from topics import TopicFilter, check_topic_name


def run_approve(approval_id: str | None, config: Config) -> int:
    """List what waits for a person, or show one act and ask whether it may happen; return the exit code.

    Raises:
        BridgeError: There is no such act, or nobody sits at the terminal.
    """
    screen = _screen()
    approvals = Approvals(config.approvals_dir)
    if approval_id is None:
        for approval in approvals.waiting():
            screen.print(f"{approval.id}  {approval.act}")
        if not approvals.waiting():
            screen.print("Nothing waits for a person.")
        return 0
    approval = approvals.find(approval_id)
    screen.print(f"The assistant wants to {approval.act}.")
    if approval.content:
        screen.print(approval.content)
    if not sys.stdin.isatty():
        raise BridgeError("Only a person at a terminal can allow it; nothing was allowed.")
    if input("Allow this once? Type yes: ").strip().lower() != "yes":
        screen.print("Not allowed.")
        return 1
    approvals.approve(approval)
    screen.print("Allowed, once, for 10 minutes. Let the assistant make the same call again.")
    return 0


def run_policy_check(what: str, topic: str, config: Config) -> int:
    """Say whether the assistant may publish or subscribe to a topic, and which rule says so; return 0 for yes.

    Raises:
        InputError: It is no topic, or no filter.
    """
    policy = Policy(config.rules)
    verdict = policy.publish(check_topic_name(topic)) if what == "publish" else policy.subscribe(TopicFilter(topic))
    mode = config.access_mode
    if what == "publish" and mode == "read":
        _screen().print(f"no: ACCESS_MODE={mode} has no tool that publishes. {verdict.reason}")
        return 1
    _screen().print(f"{'yes' if verdict.allowed else 'no'}: {verdict.reason}")
    return 0 if verdict.allowed else 1


def run_audit_verify(file: Path | None, config: Config) -> int:
    """Check the record line by line; return 0 when nobody has changed it.

    Raises:
        InputError: There is no record to check.
    """
    path = file or config.audit.file
    if path is None:
        raise InputError("Which file? Name it, or set AUDIT_FILE.")
    screen = _screen()
    problems = verify(path, config.audit.key)
    for problem in problems:
        screen.print(problem)
    if not problems:
        keyed = "" if config.audit.key else " Without AUDIT_KEY anybody who can write the file can compute the chain."
        screen.print(f"{path}: whole and unchanged.{keyed}")
    return 1 if problems else 0


def _screen() -> Screen:
    return Screen(highlight=False, soft_wrap=True, markup=False)
