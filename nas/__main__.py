"""`nas`, and `python -m nas`: the command line; Ctrl-C ends it at any moment, with one line and exit code 130."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

STOPPED = "stopped; the same command continues"
CODE = 128 + signal.SIGINT


class _Interrupts:
    """What the signal of Ctrl-C calls: the first one unwinds what is running, a second one ends it at once.

    So does the first one while something is imported: libraries in C++ abort where they cannot go on with that.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a fork, such as a data loader's process: whoever started it ends it
        self.count += 1
        if self.count > 1 or _imports(frame):
            end()
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether this frame runs for an import."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def end() -> NoReturn:
    """End this process without unwinding it; those it started notice and end, too."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(CODE)


def _in_vain(what: Any) -> None:
    """An interrupt where nothing can be raised, such as while an object is freed, would be told and then forgotten."""
    if isinstance(what.exc_value, KeyboardInterrupt):
        end()
    sys.__unraisablehook__(what)


def main() -> None:
    """Run the command line; see `nas.commands`."""
    interrupts = _Interrupts()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for jobs in the background
        signal.signal(signal.SIGINT, interrupts)
        sys.unraisablehook = _in_vain
    try:
        from nas.commands import main as run

        run()
    except BaseException:  # libraries turn an interrupt into errors of their own
        if not interrupts.count:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(STOPPED, file=sys.stderr)
        exec("")  # Python ends by the signal where one came while text was executed, as dataclasses do, until this
        sys.exit(CODE)


if __name__ == "__main__":
    main()
