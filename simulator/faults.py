"""What can go wrong with a command, told beforehand by a test."""

from dataclasses import dataclass, replace
from enum import Enum, auto


class Wrong(Enum):
    """What can go wrong with a command."""

    FOREIGN_ID = auto()  # somebody else's reply to the same command comes, with the identifier of their request
    FOREIGN_NO_ID = auto()  # the same without an identifier
    FOREIGN_COMMAND = auto()  # the same, to another command and without an identifier
    DUPLICATE = auto()  # the reply comes twice
    LATE = auto()  # it comes after `after_s`
    HELD = auto()  # it comes after the reply to the next command
    NOT_JSON = auto()  # it is `text`
    TRUNCATED = auto()  # its second half is missing
    NO_REPLY = auto()  # the command is carried out, and no reply comes
    IGNORED = auto()  # nothing happens at all
    FALSE_SUCCESS = auto()  # the reply is what it should be, and nothing has changed
    FAILING = auto()  # it fails with an error in line 2, column 9
    NEVER_APPEARS = auto()  # the topics of the entity stay as they are
    ERROR_TOPIC = auto()  # the entity fails at run time: its Error topic says `text`
    CUT_OFF = auto()  # the connection it came by is closed; the command is carried out


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong with commands that match.

    Attributes:
        wrong: What.
        command: How the commands begin, as they are named in replies: `Add`, `AddAction`; "" is every command.
        skip: How many of them go well before.
        times: How many of them go wrong; None is all until `reset`.
        after_s: For `LATE`.
        text: For `NOT_JSON` and `ERROR_TOPIC`.
        before: For foreign replies, whether they come before the true one.
    """

    wrong: Wrong
    command: str = ""
    skip: int = 0
    times: int | None = 1
    after_s: float = 0.2
    text: str = "Broker is busy"
    before: bool = True


class Faults:
    """The faults that are to strike."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []

    def arm(self, *faults: Fault) -> None:
        """Add faults; several may strike the same command."""
        self._armed += faults

    def disarm(self) -> None:
        """Forget all of them."""
        self._armed.clear()

    def strike(self, command: str) -> dict[Wrong, Fault]:
        """Find those that strike this command, and count down those that wait for a later one."""
        striking: dict[Wrong, Fault] = {}
        left: list[Fault] = []
        for fault in self._armed:
            if not command.startswith(fault.command):
                left.append(fault)
            elif fault.skip:
                left.append(replace(fault, skip=fault.skip - 1))
            else:
                striking[fault.wrong] = fault
                if fault.times is None:
                    left.append(fault)
                elif fault.times > 1:
                    left.append(replace(fault, times=fault.times - 1))
        self._armed = left
        return striking
