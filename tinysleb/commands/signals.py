"""Signals that ask a command to stop: the first lets it clean up, the second ends it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Raised where the process was when a signal arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As a shell has it for a process that a signal ended: 130 for Ctrl-C."""
    return 128 + (interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT)


def stop_on_signals() -> Callable[[], None]:
    """Raise `Stopped` when one of `SIGNALS` arrives. Those that are ignored stay so, as under nohup.

    Returns what brings back the handlers that there were.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, lambda number, _frame: os._exit(128 + number))
        raise Stopped(number)

    for number in handled:
        signal.signal(number, stop)

    def restore() -> None:
        for number in handled:
            signal.signal(number, before[number])

    return restore
