"""Every failure we foresee, so that a tool can answer with a sentence and anything else is known to be a bug.

* BridgeError
  * ConfigError              a setting that stops the start
  * InputError               an argument that no broker was asked about
  * PolicyRefusedError       a rule of the operator forbids it, or a person has not allowed it
  * LimitError               too much at once; the text says when to come back
  * BrokerError              the broker, or the way to it
    * BrokerOfflineError     not connected: nothing was sent
    * BrokerRefusedError     the broker said no
    * NotCorefluxError       the broker has no Coreflux command channel
    * NoSuchEntityError      the broker has no entity of that name
    * BrokerSilentError      the broker did not answer in time, or the connection broke: the outcome is not known
  * ServiceError             the Copilot or the LoT verifier
    * ServiceSilentError     it did not answer, or not to the end

Each text is written for the assistant or the operator: what happened, with what, and what would help.
"""


class BridgeError(Exception):
    """A failure we foresaw; its text may be shown."""


class ConfigError(BridgeError):
    """The settings cannot be used; the text names each variable, one a line."""


class InputError(BridgeError):
    """An argument is not acceptable; nothing was sent and the connection is untouched."""


class PolicyRefusedError(BridgeError):
    """The operator's rules forbid it, or ask for a person's yes that is not there; nothing was done."""


class LimitError(BridgeError):
    """Too many calls or messages; nothing was done."""


class BrokerError(BridgeError):
    """The broker, or the connection to it, did not do what was asked."""


class BrokerOfflineError(BrokerError):
    """There is no connection; nothing was sent and nothing is queued."""


class BrokerRefusedError(BrokerError):
    """The broker refused the request."""


class NotCorefluxError(BrokerError):
    """The broker is none of Coreflux's, or gives this login no commands."""


class NoSuchEntityError(BrokerError):
    """Nothing of that kind and name runs in the broker."""


class BrokerSilentError(BrokerError):
    """The request went out and its outcome is not known."""


class ServiceError(BridgeError):
    """The Copilot, or the LoT verifier, answered with nothing that is of use."""


class ServiceSilentError(ServiceError):
    """It could not be reached, or did not answer in time or to the end."""
