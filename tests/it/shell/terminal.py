"""Runs a program on a terminal and types into it.

usage: terminal.py STEPS PROGRAM [ARGUMENT...]

STEPS is a JSON list of [EXPECTED, TYPED]: TYPED is sent once the output since the last step matches
the regular expression EXPECTED. Prints everything that the program wrote, and exits with its status,
or with 99 if an expected text did not come.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

# Without an expected text for this long, in seconds.
LIMIT = 60


def plain(text):
    """Removes what only moves the cursor or changes colours."""
    text = re.sub(rb"\x1b\][^\x07\x1b]*(\x07|\x1b\\)", b"", text)
    text = re.sub(rb"\x1b[\[?][0-9;?<>=]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|[\x0e\x0f]", b"", text)
    return text


def main():
    steps = json.loads(sys.argv[1])
    child, terminal = pty.fork()
    if child == 0:
        # They are ignored where the tests run in the background.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        # Wide enough that no line is broken. Set before the program can read it.
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        os.environ["TERM"] = "xterm"
        os.environ["COLUMNS"] = "200"
        os.execvp(sys.argv[2], sys.argv[2:])
    everything = b""
    start = 0
    deadline = time.monotonic() + LIMIT
    status = None
    while status is None and time.monotonic() < deadline:
        if steps and re.search(steps[0][0].encode(), plain(everything[start:])):
            start = len(everything)
            # As the Enter key does.
            os.write(terminal, steps.pop(0)[1].replace("\n", "\r").encode())
            deadline = time.monotonic() + LIMIT
        # Another process may keep the terminal open, so its end says nothing about the program's.
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
        while select.select([terminal], [], [], 0.05)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            everything += data
            if status is None:
                break
    sys.stdout.buffer.write(plain(everything).replace(b"\r\n", b"\n"))
    sys.stdout.flush()
    if status is None:
        print("\nnothing typed ended it; next:", steps[:1], "last:", everything[start:])
        os.kill(child, 9)
        os.waitpid(child, 0)
    sys.exit(99 if status is None or steps else os.waitstatus_to_exitcode(status))


main()
