"""The rules of the dialogue, as tables: who may say what when, and what both sides agree on. Pure: no IO."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from gateway.errors import MilterError
from gateway.milter import packets
from gateway.milter.packets import ALL_ACTIONS, ALL_STEPS, OLDEST_VERSION, VERSION, Actions, Negotiate, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.milter.packets import Answer, Packet


class State(Enum):
    """How far the MTA has come with a filter."""

    NEW = auto()
    AGREED = auto()
    #: A client is known; no mail.
    IDLE = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    HEADER = auto()
    BODY = auto()
    OVER = auto()


#: What an MTA may say in each state, and where that leads. Macros change nothing and are not here.
NEXT: Mapping[State, Mapping[type[Packet], State]] = {
    State.NEW: {packets.Negotiate: State.AGREED},
    State.AGREED: {packets.Connect: State.IDLE},
    State.IDLE: {packets.Helo: State.IDLE, packets.Mail: State.MAIL, packets.Unknown: State.IDLE},
    State.MAIL: {packets.Rcpt: State.RCPT, packets.Unknown: State.MAIL},
    State.RCPT: {
        packets.Rcpt: State.RCPT,
        packets.Unknown: State.RCPT,
        packets.Data: State.DATA,
        packets.Header: State.HEADER,
        packets.EndOfHeaders: State.BODY,
    },
    State.DATA: {packets.Header: State.HEADER, packets.EndOfHeaders: State.BODY},
    State.HEADER: {packets.Header: State.HEADER, packets.EndOfHeaders: State.BODY},
    State.BODY: {packets.Body: State.BODY, packets.EndOfMessage: State.IDLE},
    State.OVER: {},
}
#: In these a message is under way, so that `Abort` means something.
IN_MAIL = frozenset({State.MAIL, State.RCPT, State.DATA, State.HEADER, State.BODY})
#: Said in the middle of a message, these end it first, as in libmilter.
_RESTARTS = (packets.Helo, packets.Mail)


def after(state: State, command: Packet) -> tuple[State, bool]:
    """Give the state behind a command, and whether it has ended a message early. Raises MilterError."""
    if isinstance(command, packets.Quit):
        return State.OVER, state in IN_MAIL
    if isinstance(command, packets.QuitForNext):
        return State.AGREED, state in IN_MAIL
    if isinstance(command, packets.Abort):
        # Some MTAs send it when there is nothing to end.
        return (State.IDLE if state in IN_MAIL else state), state in IN_MAIL
    restart = state in IN_MAIL and isinstance(command, _RESTARTS)
    following = NEXT[State.IDLE if restart else state].get(type(command))
    if following is None:
        raise MilterError(f"{type(command).__name__} in the state {state.name}")
    return following, restart


_VERDICTS = frozenset(
    {
        packets.Continue,
        packets.Accept,
        packets.Reject,
        packets.TempFail,
        packets.ReplyCode,
        packets.Shutdown,
        packets.Progress,
        packets.Skip,
        # No verdict; Postfix takes it at any time.
        packets.Quarantine,
    }
)
_IN_MAIL = _VERDICTS | {packets.Discard}
_AT_END = (_IN_MAIL - {packets.Skip}) | {
    packets.AddHeader,
    packets.InsertHeader,
    packets.ChangeHeader,
    packets.ReplaceBody,
    packets.AddRecipient,
    packets.AddRecipientWithArguments,
    packets.DeleteRecipient,
    packets.ChangeSender,
}
#: What a filter may answer to each command.
ALLOWED: Mapping[type[Packet], frozenset[type[Packet]]] = {
    packets.Negotiate: frozenset({packets.Negotiate}),
    packets.Connect: _VERDICTS,
    packets.Helo: _VERDICTS,
    packets.Unknown: _VERDICTS,
    packets.Mail: _IN_MAIL,
    packets.Rcpt: _IN_MAIL,
    packets.Data: _IN_MAIL,
    packets.Header: _IN_MAIL,
    packets.EndOfHeaders: _IN_MAIL,
    packets.Body: _IN_MAIL,
    packets.EndOfMessage: _AT_END,
}
#: What a filter must have asked for before it may answer with one of these.
NEEDS: Mapping[type[Packet], Actions] = {
    packets.AddHeader: Actions.ADD_HEADERS,
    packets.InsertHeader: Actions.ADD_HEADERS,
    packets.ChangeHeader: Actions.CHANGE_HEADERS,
    packets.ReplaceBody: Actions.CHANGE_BODY,
    packets.AddRecipient: Actions.ADD_RECIPIENTS,
    packets.AddRecipientWithArguments: Actions.ADD_RECIPIENTS_WITH_ARGUMENTS,
    packets.DeleteRecipient: Actions.DELETE_RECIPIENTS,
    packets.ChangeSender: Actions.CHANGE_SENDER,
    packets.Quarantine: Actions.QUARANTINE,
}
#: Command -> the bit that leaves it out, and the bit by which it is not answered.
SWITCHES: Mapping[type[Packet], tuple[Steps, Steps]] = {
    packets.Connect: (Steps.NO_CONNECT, Steps.NR_CONNECT),
    packets.Helo: (Steps.NO_HELO, Steps.NR_HELO),
    packets.Mail: (Steps.NO_MAIL, Steps.NR_MAIL),
    packets.Rcpt: (Steps.NO_RCPT, Steps.NR_RCPT),
    packets.Data: (Steps.NO_DATA, Steps.NR_DATA),
    packets.Header: (Steps.NO_HEADERS, Steps.NR_HEADER),
    packets.EndOfHeaders: (Steps.NO_EOH, Steps.NR_EOH),
    packets.Body: (Steps.NO_BODY, Steps.NR_BODY),
    packets.Unknown: (Steps.NO_UNKNOWN, Steps.NR_UNKNOWN),
    packets.EndOfMessage: (Steps(0), Steps(0)),
}
#: From which version on a filter knows a command.
_SINCE: Mapping[type[Packet], int] = {packets.Unknown: 3, packets.Data: 4}


class Agreement:
    """What the two sides have agreed on, as the MTA sees it."""

    def __init__(self, answer: Negotiate) -> None:
        """Check a filter's answer to an offer of everything. Raises MilterError."""
        if not OLDEST_VERSION <= answer.version <= VERSION:
            raise MilterError(f"the filter speaks version {answer.version}")
        if answer.actions & ~int(ALL_ACTIONS):
            raise MilterError(f"the filter asks for unknown actions {answer.actions:#x}")
        self.version = answer.version
        self.actions = Actions(answer.actions)
        # Bits that nobody knows are ignored, as Postfix does.
        self.steps = Steps(answer.steps & ALL_STEPS)
        self.macros = dict(answer.macros)

    @property
    def leading_space(self) -> bool:
        """Whether values of header fields carry their own space."""
        return Steps.LEADING_SPACE in self.steps

    def sends(self, kind: type[Packet]) -> bool:
        """Whether the filter wants to see this command."""
        left_out, _ = SWITCHES[kind]
        return self.version >= _SINCE.get(kind, 0) and not self.steps & left_out

    def answers(self, kind: type[Packet]) -> bool:
        """Whether the filter answers this command; waiting for an answer that never comes is a dead-lock."""
        return not self.steps & SWITCHES[kind][1]

    def check(self, command: type[Packet], answer: Answer) -> None:
        """Raise MilterError for an answer that may not stand here."""
        name = type(answer).__name__
        if type(answer) not in ALLOWED[command]:
            raise MilterError(f"{name} in answer to {command.__name__}")
        if NEEDS.get(type(answer), Actions(0)) & ~self.actions:
            raise MilterError(f"{name}, which the filter has not asked for")


#: What our own filter side does to messages.
_WANTED_ACTIONS = (
    Actions.ADD_HEADERS
    | Actions.CHANGE_BODY
    | Actions.ADD_RECIPIENTS
    | Actions.DELETE_RECIPIENTS
    | Actions.CHANGE_HEADERS
    | Actions.QUARANTINE
    | Actions.CHANGE_SENDER
)
#: How it wants the dialogue: content is not answered piece by piece, and unknown commands are not shown.
_WANTED_STEPS = Steps.NO_UNKNOWN | Steps.NR_HEADER | Steps.NR_EOH | Steps.NR_BODY | Steps.LEADING_SPACE


def accept_offer(offer: Negotiate, macros: tuple[tuple[int, tuple[bytes, ...]], ...]) -> Negotiate:
    """Answer an MTA's offer with what our filter side takes of it. Raises MilterError."""
    if offer.version < OLDEST_VERSION:
        raise MilterError(f"the MTA speaks version {offer.version}")
    actions = offer.actions & _WANTED_ACTIONS
    choose = Actions.CHOOSE_MACROS & offer.actions
    return Negotiate(
        min(offer.version, VERSION), actions | choose, offer.steps & _WANTED_STEPS, macros if choose else ()
    )
