"""The command `setup`: ask for what the server has to know, try each answer, and write the `.env` and clients' files.

Nothing is written before every question has its answer; what is secret is neither echoed nor shown.
"""

import getpass
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import logs
from config import BrokerConfig, Config, Logs, settings_to_pass_on, with_paths_from
from errors import BridgeError, ConfigError
from onboarding import trials
from onboarding.client_config import CLIENTS, entry_as_set, install, where_the_token_is
from onboarding.client_files import is_there, settings_file
from onboarding.dotenv_file import changed, differences, dotenv_values
from onboarding.file_changes import PRIVATE, check_writable, read_file, replace_file
from screen import Screen

_NONE: Final = "-"
"""The answer that takes away what is there."""

_ABOUT_TLS: Final = (
    "MQTT_CA_CERT",
    "MQTT_CLIENT_CERT",
    "MQTT_CLIENT_KEY",
    "MQTT_CLIENT_KEY_PASSWORD",
    "MQTT_CLIENT_KEY_PASSWORD_FILE",
    "MQTT_TLS_SERVER_NAME",
    "MQTT_TLS_INSECURE",
    "MQTT_TLS_MIN_VERSION",
    "MQTT_TLS_CIPHERS",
)
_IN_THE_ADDRESS: Final = dict.fromkeys(("MQTT_PORT", "MQTT_TRANSPORT", "MQTT_WS_PATH", "MQTT_USE_TLS"), "")
"""What MQTT_BROKER says when it is a URL, so that nothing else has to."""
_LOGIN: Final = ("MQTT_USER", "MQTT_USER_FILE", "MQTT_PASSWORD", "MQTT_PASSWORD_FILE")
_COPILOT: Final = ("COPILOT_URL", "DO_AGENT_API_KEY", "DO_AGENT_API_KEY_FILE")
_GROUPS: Final = (("MQTT_BROKER", *_IN_THE_ADDRESS, *_ABOUT_TLS), _LOGIN, _COPILOT, ("ACCESS_MODE",))
_ASKED: Final = {name for group in _GROUPS for name in group}

Answers = dict[str, str]
"""Settings by name; "" for one that is to be empty."""


class _BackToTheBrokerError(Exception):
    """What did not work may be the fault of an earlier answer."""


def run_setup(env_file: Path, *, dry_run: bool) -> int:
    """Ask, try, write, and return the exit code: 0 when all was answered and written.

    Raises:
        ConfigError: What the file says besides cannot be used.
        BridgeError: Nobody sits at the terminal, or something cannot be written.
    """
    if not sys.stdin.isatty():
        raise BridgeError(
            "setup asks a person at a terminal, and there is none. Copy .env.example to .env and edit it instead."
        )
    logs.set_up(Logs(level="ERROR"))  # a failed attempt is told here, and once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script may have started us with Ctrl-C ignored
    setup = Setup(env_file, dry_run=dry_run)
    try:
        return setup.run()
    except (KeyboardInterrupt, EOFError):
        setup.say(f"\nStopped. {setup.done}")
        return 1


@dataclass(slots=True)
class Setup:
    """One conversation."""

    env_file: Path
    dry_run: bool
    screen: Screen = field(default_factory=lambda: Screen(highlight=False, soft_wrap=True, markup=False))
    done: str = "Nothing was written."
    before: bytes | None = None
    there: Answers = field(default_factory=dict)
    """What the file says."""
    answers: Answers = field(default_factory=dict)
    login_given: bool = False
    """The address had a login in it, which nobody has tried yet."""

    def run(self) -> int:
        """Have the conversation, and return the exit code."""
        self.before = read_file(self.env_file)
        if not self.dry_run:
            check_writable(self.env_file)
        try:
            text = (self.before or b"").decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"{self.env_file} is not UTF-8.") from None
        self.there = with_paths_from(self.env_file, dotenv_values(text))
        self.say(
            f"This writes {self.env_file}. Every answer is tried before the next question. Enter takes what is in "
            f"brackets; {_NONE} takes away what is there; Ctrl-C ends it, and nothing is written."
        )
        self._set_aside_what_cannot_be_used()
        without_broker = dict(self.answers)
        while not self._broker_is_settled():
            self.answers = dict(without_broker)
        self._ask_for_copilot()
        self._until_it_works(self._access, lambda config: f"The assistant may {_MAY[config.access_mode]}.")
        if self._write(text):
            self._offer_clients()
            return 0
        return 1

    def _set_aside_what_cannot_be_used(self) -> None:
        """Look at what the file says, so that a question is not held up by something else.

        Raises:
            ConfigError: It says something that is not asked for and cannot be used.
        """
        usable = {name: each for name, each in self.there.items() if name not in _ASKED}
        Config.from_env(usable, env_file=None)
        for group in _GROUPS:
            part = {name: self.there[name] for name in group if name in self.there}
            try:
                Config.from_env({**usable, **part}, env_file=None)
            except ConfigError as exc:
                self.say(f"This is in the file, cannot be used, and is asked anew:\n{exc}")
                self.answers |= dict.fromkeys(part, "")
            else:
                usable |= part

    # The questions.

    def _broker_is_settled(self) -> bool:
        """Ask for the broker and all that it wants; say whether that is not to begin again."""
        self._ask_for_broker()
        if self.answers["MQTT_BROKER"] == "embedded":
            return True
        try:
            if self._config({}).tls:
                self._ask_for_certificates()
            self._until_it_works(self._login, lambda config: trials.log_in(config.broker), way_back=True)
        except _BackToTheBrokerError:
            return False
        return True

    def _ask_for_broker(self) -> None:
        self.say("\nThe broker")
        known = self._known()

        def try_it(config: Config) -> str:
            embedded = "The development broker starts with the server, on this machine only."
            return embedded if config.broker.embedded else trials.reach(config.broker)

        self._until_it_works(lambda: self._address(known), try_it)

    def _known(self) -> BrokerConfig | None:
        """Return the broker to propose: the one in the file, or one on this machine."""
        about = {name: each for name, each in self.there.items() if name in _GROUPS[0] and name not in self.answers}
        broker = Config.from_env(about, env_file=None).broker
        if about.get("MQTT_BROKER"):
            return broker
        if trials.answers(broker):
            self.say(f"Something answers on {broker.host}, port {broker.port}.")
            return broker
        return None

    def _address(self, known: BrokerConfig | None) -> Answers:
        proposed = "" if known is None else "embedded" if known.embedded else known.url
        text = self._ask("Host, HOST:PORT or URL without a login; or embedded, for a development broker", proposed)
        broker = Config.from_env({"MQTT_BROKER": text}, env_file=None).broker
        if known is not None and text == proposed:
            broker = known
        elif broker.password:
            self.say("The password in the address stood on the screen: clear it.")
        if broker.embedded:
            return {"MQTT_BROKER": "embedded", **_IN_THE_ADDRESS, **dict.fromkeys((*_ABOUT_TLS, *_LOGIN), "")}
        login = self._login_of(broker)
        if "://" not in text and not broker.tls:
            secure = Config.from_env({"MQTT_BROKER": text, "MQTT_USE_TLS": "true"}, env_file=None).broker
            if self._ask_yes("TLS?", default=trials.speaks_tls(secure)):
                broker = secure
        no_tls = {} if broker.tls else dict.fromkeys(_ABOUT_TLS, "")
        return {"MQTT_BROKER": broker.url, **_IN_THE_ADDRESS, **no_tls, **login}

    def _login_of(self, broker: BrokerConfig) -> Answers:
        """Take the login out of an address, so that it has lines of its own."""
        login = {"MQTT_USER": broker.user or ""}
        if broker.password:
            login["MQTT_PASSWORD"] = broker.password.get_secret_value()
        self.login_given = broker.password is not None
        return {**dict.fromkeys(_LOGIN, ""), **login} if broker.user or broker.password else {}

    def _ask_for_certificates(self) -> None:
        try:
            self.say(trials.shake_hands(self._config({}).broker))
        except BridgeError as exc:
            self.say(str(exc))
            self._until_it_works(self._certificates, lambda config: trials.shake_hands(config.broker), way_back=True)

    def _certificates(self) -> Answers:
        path = self._ask_path("PEM file of the authority that signed the broker's certificate", "MQTT_CA_CERT")
        name = self._ask_or_none("Name in the certificate, if it is another than the host's", "MQTT_TLS_SERVER_NAME")
        return {"MQTT_CA_CERT": path, "MQTT_TLS_SERVER_NAME": name, **self._own_certificate()}

    def _own_certificate(self) -> Answers:
        certificate = self._ask_path("PEM file of our own certificate, if the broker wants one", "MQTT_CLIENT_CERT")
        if not certificate:
            return {name: "" for name in _ABOUT_TLS if name.startswith("MQTT_CLIENT_")}
        answers = {"MQTT_CLIENT_CERT": certificate}
        key = self._ask_path("PEM file of its key, if that is another file", "MQTT_CLIENT_KEY")
        answers["MQTT_CLIENT_KEY"] = key
        if _is_encrypted(Path(key or certificate)):
            answers |= self._ask_secret("Password of the key", "MQTT_CLIENT_KEY_PASSWORD")
        return answers

    def _login(self) -> Answers:
        if self.login_given:
            self.login_given = False
            return {}
        self.say("\nThe login")
        if self.there.get("MQTT_USER_FILE") and "MQTT_USER_FILE" not in self.answers:
            self.say(f"The user name is in {self.there['MQTT_USER_FILE']}.")
            user, answers = "as there", {}
        else:
            user = self._ask_or_none("User name", "MQTT_USER")
            answers = {"MQTT_USER": user, "MQTT_USER_FILE": ""}
        if self.there.get("MQTT_OAUTH_TOKEN_URL"):
            self.say("The password is a token by OAuth 2, as the file has it.")
            return answers
        if not user:
            return dict.fromkeys(_LOGIN, "")
        return answers | self._ask_secret("Password", "MQTT_PASSWORD")

    def _ask_for_copilot(self) -> None:
        self.say("\nThe Coreflux Copilot, a service outside of the plant")
        self._until_it_works(
            self._copilot,
            lambda config: trials.look_for_copilot(config.copilot) if config.copilot.url else "No Copilot.",
        )
        if self.answers["COPILOT_URL"]:
            self._until_it_works(self._key, self._try_key)

    def _copilot(self) -> Answers:
        url = self._ask_or_none("Its address, like https://NAME.agents.do-ai.run", "COPILOT_URL")
        return {"COPILOT_URL": url} if url else dict.fromkeys(_COPILOT, "")

    def _key(self) -> Answers:
        answers = self._ask_secret("Access key", "DO_AGENT_API_KEY")
        return answers if not self._config(answers).copilot.missing else dict.fromkeys(_COPILOT, "")

    def _try_key(self, config: Config) -> str:
        if config.copilot.missing:
            return "Without its key there is no Copilot."
        if not self._ask_yes(
            "Ask it one word, to see whether it takes the key? That costs a few tokens.", default=True
        ):
            return "The key was not tried."
        return trials.ask_copilot(config.copilot)

    def _access(self) -> Answers:
        self.say("\nWhat the assistant may do")
        known = self.answers.get("ACCESS_MODE") or self.there.get("ACCESS_MODE") or "write"
        return {"ACCESS_MODE": self._ask("read, write or admin", known).lower()}

    # What is done with the answers.

    def _write(self, text: str) -> bool:
        """Show what would change in the file and write it, if that is wanted; say whether all is as it was answered."""
        new = changed(text, self.answers)
        config = Config.from_env(with_paths_from(self.env_file, dotenv_values(new)), env_file=None)
        self.say(f"\n{self.env_file}")
        for line in differences(dotenv_values(text), dotenv_values(new)):
            self.say(line)
        for warning in config.warnings:
            self.say(f"Note: {warning}")
        if new == text:
            self.say("Nothing has to be changed in it.")
            return True
        if self.dry_run:
            self.say("Nothing was written: this is a dry run.")
            return True
        if not self._ask_yes("Write it?", default=True):
            self.say("Nothing was written.")
            return False
        mark = b"\xef\xbb\xbf" if (self.before or b"").startswith(b"\xef\xbb\xbf") else b""
        copy = replace_file(self.env_file, self.before, mark + new.encode(), PRIVATE)
        self.done = f"{self.env_file} is written; no client's file was changed."
        self.say(f"Written.{f' What was there is in {copy}.' if copy else ''}")
        passed_on, withheld = settings_to_pass_on()
        if stronger := sorted({*passed_on, *withheld} & self.answers.keys()):
            self.say(f"Note: {', '.join(stronger)} is in the environment too, which wins over the file.")
        return True

    def _offer_clients(self) -> None:
        self.say("\nThe clients")
        config = self._config({})
        found = [client for client in CLIENTS if is_there(client)]
        if not found:
            self.say("None was found. python server.py client-config NAME prints the entry for one.")
        for client in found:
            file = settings_file(client)
            if not self._ask_yes(f"Add the server to {CLIENTS[client]} ({file})?", default=True):
                continue
            try:
                entry = entry_as_set(client, config, {}, self.env_file)
                for line in install(client, "coreflux", entry, file, dry_run=self.dry_run):
                    self.say(line)
                if where := where_the_token_is(client, entry):
                    self.say(where)
                if not self.dry_run:
                    self.done = f"{self.env_file} and the files of clients that were told of are written."
            except BridgeError as exc:
                self.say(str(exc))

    # How questions are asked.

    def _until_it_works(
        self, ask: Callable[[], Answers], attempt: Callable[[Config], str], *, way_back: bool = False
    ) -> None:
        """Ask until the answer holds, or the person wants to keep it although it does not.

        Raises:
            _BackToTheBrokerError: The person, who has been offered that, wants to begin again with the broker.
        """
        while True:
            try:
                answers = ask()
                config = self._config(answers)
            except ConfigError as exc:
                self.say(str(exc))
                continue
            try:
                self.say(attempt(config))
            except BridgeError as exc:
                self.say(str(exc))
                if not self._wants_to_keep(way_back=way_back):
                    continue
            self.answers |= answers
            return

    def _wants_to_keep(self, *, way_back: bool) -> bool:
        question = "Keep the answer all the same?"
        if not way_back:
            return self._ask_yes(question, default=False)
        answer = self._ask_for_one_of(f"{question} yes, no, or back to the broker", "no", ("yes", "no", "back"))
        if answer == "back":
            raise _BackToTheBrokerError
        return answer == "yes"

    def _config(self, answers: Answers) -> Config:
        """Return the settings as they would be; the environment does not count."""
        return Config.from_env({**self.there, **self.answers, **answers}, env_file=None)

    def say(self, text: str) -> None:
        """Say something."""
        self.screen.print(text)

    def _ask(self, question: str, known: str) -> str:
        while True:
            self.screen.print(f"{question}{f' [{known}]' if known else ''}: ", end="")
            answer = input().strip() or known
            if answer:
                return answer

    def _ask_or_none(self, question: str, name: str) -> str:
        known = self.answers.get(name, self.there.get(name, ""))
        answer = self._ask(question, known or "none")
        return "" if answer == _NONE or (answer == "none" and not known) else answer

    def _ask_path(self, question: str, name: str) -> str:
        """Ask for a file; it is found in whatever directory the server starts."""
        answer = self._ask_or_none(question, name)
        try:
            return str(Path(answer).expanduser().absolute()) if answer else ""
        except RuntimeError:  # there is no home directory for ~
            return answer

    def _ask_secret(self, question: str, name: str) -> Answers:
        there = bool(self.answers.get(name) or self.there.get(name) or self.there.get(f"{name}_FILE"))
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            try:
                answer = getpass.getpass(f"{question}, not shown [{'as it is' if there else 'none'}]: ")
            except getpass.GetPassWarning:
                raise BridgeError("This terminal would show what is typed, so nothing secret is asked for.") from None
        return {name: answer, f"{name}_FILE": ""} if answer else {}

    def _ask_yes(self, question: str, *, default: bool) -> bool:
        return self._ask_for_one_of(question, "yes" if default else "no", ("yes", "no")) == "yes"

    def _ask_for_one_of(self, question: str, known: str, words: Sequence[str]) -> str:
        """Ask until the answer is one of some words, or its first letter."""
        while True:
            answer = self._ask(question, known).lower()
            for word in words:
                if answer in {word, word[0]}:
                    return word
            self.say(f"Answer {', '.join(words[:-1])} or {words[-1]}.")


def _is_encrypted(key: Path) -> bool:
    try:
        return b"ENCRYPTED" in (read_file(key) or b"")
    except BridgeError:  # what is wrong with it is told when the answer is tried
        return False


_MAY: Final = {"read": "read", "write": "read and publish", "admin": "do everything"}
