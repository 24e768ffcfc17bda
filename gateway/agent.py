"""The agent: the only code that ever runs as root. It reads no YAML and no mail, and runs no plugin.

It binds the listed addresses, starts the supervisor as `gateway.user`, and from then on answers
requests that workers send over one inherited socket:

  account   hand this request to the child that has become a listed account (it delivers, or looks whether
            a `.qmail` file takes an address); what it does there is up to the account's own files
  login     have a program that the configuration names look at a login, as root; gives its exit code
  read      open a file of TLS that the configuration names, if nobody but root can change where it leads
  reload    read the configuration again, by a reader without rights; bind what it lists anew
  adopt     go by what was read: before, its files of TLS may be read, and nothing else of it counts
  unbind    forget what was not adopted; remove the sockets of listeners that are no more
  notify    tell systemd that we are ready, reload, or stop: it listens to the agent alone

A request is a datagram with open files; the last of them is where its answer goes. What a request may say is
little, so a worker that was taken over gains little: it can have listed accounts do what their files ask for.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway import signals
from gateway.accounts.book import Book
from gateway.accounts.ownership import refuse_argument, refuse_changeable
from gateway.endpoint import Endpoint
from gateway.errors import AgentError
from gateway.listeners import close_sockets, remove_stale, share_out
from gateway.partition.children import IDLE, Children
from gateway.partition.forking import serve_as, start_login
from gateway.partition.notify import WORDS, notify
from gateway.partition.privilege import give_state, read, user_of
from gateway.passing import send_files

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Mapping, Sequence

    from gateway.listeners import Sockets
    from gateway.partition.privilege import Plan

    #: Serves as the supervisor, in a process of its own that has become `gateway.user`.
    Serve = Callable[[Sequence[Sockets], socket.socket], None]

_LONGEST_REQUEST = 4096
#: What comes with a request: its text, a body, the way of its answer.
_MOST_FILES = 3
#: Programs that look at logins at one time.
_LOGINS = 16


class Bound(NamedTuple):
    """A listener, as far as it is bound."""

    name: str
    address: Endpoint


def run(conf: Path, plan: Plan, serve: Serve) -> int:
    """Be the agent until the supervisor has ended; gives its exit code. Raises GatewayError."""
    made = read(conf, plan)
    account = user_of(made["user"], made["user_at"])
    shares = share_out(_listeners(made), made["workers"])
    try:
        give_state(Path(made["state"]), account, guarded=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent = Agent(conf, plan, made, account, ours)
        for one in signals.OURS:
            signal.signal(one, agent.forward)
        agent.supervisor = os.fork()
        if not agent.supervisor:
            ours.close()
            serve_as(account, lambda: serve(shares, theirs))
        theirs.close()
        # The supervisor holds them from here on: what it closes has to be free.
        for share in shares:
            close_sockets(share, paths=False)
        # Paths are the agent's to remove: by its end others may serve there.
        shares.clear()
        return agent.serve()
    finally:
        for share in shares:
            close_sockets(share)


def _listeners(plan: Mapping[str, Any]) -> list[Bound]:
    return [Bound(name, Endpoint.parse(address)) for name, address in plan["listeners"]]


def _paths(listeners: Sequence[Bound]) -> set[Endpoint]:
    return {one.address for one in listeners if one.address.path}


class Agent:
    """Answers workers; ends with the supervisor."""

    def __init__(
        self, conf: Path, plan: Plan, made: dict[str, Any], account: pwd.struct_passwd, door: socket.socket
    ) -> None:
        self.supervisor = 0
        self._conf = conf
        self._plan = plan
        self._made = made
        #: What a reload has read, while the workers prepare to use it.
        self._next: dict[str, Any] | None = None
        self._account = account
        self._door = door
        self._book = Book(made["accounts"], account)
        #: Where sockets with a path were bound that are ours to remove.
        self._paths = _paths(_listeners(made))
        self._children = Children()
        #: The processes that look at logins, and where each answer goes.
        self._logins: dict[int, int] = {}

    def forward(self, number: int, _: object) -> None:
        """Hand a signal on to the supervisor."""
        if self.supervisor:
            os.kill(self.supervisor, number)

    def serve(self) -> int:
        """Answer until the supervisor has ended; gives its exit code."""
        ending = os.pidfd_open(self.supervisor)
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signals.hear()
        with selectors.DefaultSelector() as ready:
            for one in (self._door, ending, woken):
                ready.register(one, selectors.EVENT_READ)
            while True:
                found = {key.fd for key, _ in ready.select(IDLE / 2)}
                if ending in found:
                    break
                if woken.fileno() in found:
                    woken.recv(4096)
                if self._door.fileno() in found and not self._take():
                    ready.unregister(self._door)
                self._tidy()
        self._children.let_all_go()
        self._remove(self._paths)
        ended, self.supervisor = self.supervisor, 0
        _, status = os.waitpid(ended, 0)
        return os.waitstatus_to_exitcode(status)

    def _take(self) -> bool:
        """Take one request; whatever is wrong with it is its answer. False when there are no more."""
        data, files, _, _ = socket.recv_fds(
            self._door, _LONGEST_REQUEST, _MOST_FILES, socket.MSG_CMSG_CLOEXEC
        )
        if not data and not files:
            return self._is_open()
        try:
            if files:
                self._do(json.loads(data), data, files)
        except Exception as error:  # noqa: BLE001 - whatever a worker sends, others need us
            _answer(files[-1], {"error": str(error) or repr(error)})
        finally:
            for one in files:
                os.close(one)
        return True

    def _is_open(self) -> bool:
        """Tell an empty request from the end of the way: should a worker have shut it, all ends in order."""
        look = select.poll()
        look.register(self._door, select.POLLRDHUP)
        if not look.poll(0):
            return True
        os.kill(self.supervisor, signal.SIGTERM)
        return False

    def _do(self, asked: dict[str, Any], data: bytes, files: Sequence[int]) -> None:
        what = asked["do"]
        if what == "account":
            account = self._book.find(str(asked["account"]), str(asked["home"]))
            self._children.hand_on(account, data, files, self._made)
        elif what == "login":
            self._login(str(asked["plugin"]), files)
        elif what == "read":
            self._read(str(asked["path"]), files[-1])
        elif what == "reload":
            self._reload([str(one) for one in asked["bind"]], files[-1])
        elif what in ("adopt", "unbind"):
            (self._adopt if what == "adopt" else self._unbind)()
            _answer(files[-1], {})
        elif what == "notify" and asked["word"] in WORDS:
            notify(asked["word"])
            _answer(files[-1], {"told": asked["word"]})
        else:
            raise AgentError(f"there is no request {what}")

    def _login(self, plugin: str, files: Sequence[int]) -> None:
        """Have a program look at a login; its end is the answer."""
        program = self._made["logins"][plugin]
        if len(self._logins) >= _LOGINS:
            raise AgentError("too many logins at a time")
        refuse_changeable(program[0])
        for one in program[1:]:
            refuse_argument(one)
        self._logins[start_login(program, files[0])] = os.dup(files[-1])

    def _tidy(self) -> None:
        """Let children go that have nothing to do; bury those that have ended."""
        self._children.tidy()
        with contextlib.suppress(ChildProcessError):
            while True:
                # The supervisor's end is another's to see.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid == self.supervisor:
                    return
                _, status = os.waitpid(found.si_pid, 0)
                if (reply := self._logins.pop(found.si_pid, None)) is not None:
                    _answer(reply, {"exit": os.waitstatus_to_exitcode(status)})
                    os.close(reply)
                self._children.bury(found.si_pid)

    def _read(self, path: str, reply: int) -> None:
        """Hand over a file that the configuration names. Raises AgentError."""
        if not any(path in plan["files"] for plan in (self._made, self._next) if plan):
            raise AgentError(f"{path}: no listener has this file")
        found = os.open(refuse_changeable(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise AgentError(f"{path}: it is no regular file")
            _answer(reply, {"read": path}, [found])
        finally:
            os.close(found)

    def _reload(self, wanted: Sequence[str], reply: int) -> None:
        """Read the configuration anew, and bind what it lists and is wanted. Raises GatewayError."""
        made = read(self._conf, self._plan)
        added = [one for one in _listeners(made) if str(one.address) in wanted]
        shares = share_out(added, self._made["workers"])
        try:
            files = [one.fileno() for share in shares for some in share.values() for one in some]
            counts = [[[str(one), len(some)] for one, some in share.items()] for share in shares]
            _answer(reply, {"bound": counts}, files)
        finally:
            for share in shares:
                close_sockets(share, paths=False)
            self._paths |= _paths(added)
        made["user"], made["workers"] = self._made["user"], self._made["workers"]
        self._next = made

    def _adopt(self) -> None:
        """Go by what the last reload has read, now that every worker can."""
        if self._next is None:
            raise AgentError("nothing was read that is not in use")
        self._made, self._book, self._next = self._next, Book(self._next["accounts"], self._account), None
        self._children.let_all_go()

    def _unbind(self) -> None:
        """Remove what a reload has dropped, but nothing that is served: by this no worker keeps mail out."""
        self._next = None
        dropped = self._paths - _paths(_listeners(self._made))
        # Whoever binds there from now on is another.
        self._paths -= dropped
        self._remove(dropped)

    def _remove(self, paths: set[Endpoint]) -> None:
        """Remove sockets that we have bound and that nobody serves any more."""
        for endpoint in paths:
            with contextlib.suppress(OSError):  # as where a folder was mounted read-only
                remove_stale(endpoint.path)


def _answer(reply: int, said: Mapping[str, Any], files: Sequence[int] = ()) -> None:
    """Say it to whoever waits; who has left misses it, and so does what is no socket."""
    with contextlib.suppress(OSError):
        way = socket.socket(fileno=reply)
        try:
            send_files(way, json.dumps(said).encode(), files)
        finally:
            way.detach()
