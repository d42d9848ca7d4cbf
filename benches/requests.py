#!/usr/bin/env python3
"""Shows which requests the kernel sends to the daemon for common operations, as a Markdown table.

    sudo benches/requests.py --env DIR [--envfs PROGRAM] [--scratch DIR]

Counts with the kernel's tracepoint fuse:fuse_request_send, so it needs root and a tracefs. `DIR` should be
an environment with Python, numpy, pandas and pip.
"""

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile

# When root runs this, no files owned by root are left in the source tree.
sys.dont_write_bytecode = True

from pathlib import Path

from comparison.workloads import make_wheel

TRACING = Path("/sys/kernel/tracing")
LINE = re.compile(r"connection (\d+) req \d+ opcode \d+ \(FUSE_(\w+)\)")


def new_file():
    with open("new", "w") as file:
        file.write("text\n")


def new_file_os():
    descriptor = os.open("new-os", os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(descriptor, b"text\n")
    os.close(descriptor)


def long_file():
    with open("long", "wb", buffering=0) as file:
        for _ in range(10):
            file.write(bytes(4096))


def append():
    with open("new", "a") as file:
        file.write("more\n")


def overwrite():
    with open("new", "w") as file:
        file.write("other\n")


def replace():
    with open("new.tmp", "w") as file:
        file.write("text\n")
    os.replace("new.tmp", "new")


def read(path):
    def reading():
        with open(path) as file:
            file.read()

    return reading


def command(*words):
    return lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def operations(tree, wheel):
    """What is done, and how; in this order."""
    inside = next(path.relative_to(tree) for path in sorted(tree.glob("lib/python3*/site-packages/numpy/*.py")))
    folder = inside.parent
    pip = ("bin/python3", "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--root-user-action=ignore", wheel)
    yield "`open(…, 'w')`, write, close of a new file in Python", new_file
    yield "the same with `os.open`, `os.write`", new_file_os
    yield "10 writes of 4 KiB to a new file", long_file
    yield "`stat` of the new file", lambda: os.stat("new")
    yield "`stat` of its directory", lambda: os.stat(".")
    yield "read it back in Python", read("new")
    yield "read it again", read("new")
    yield "append to it", append
    yield "overwrite it", overwrite
    yield "write a new file and rename it over it", replace
    yield "`rename` to a new name", lambda: os.rename("new", "moved")
    yield "`chmod`", lambda: os.chmod("moved", 0o600)
    yield "`unlink`", lambda: os.unlink("moved")
    yield "`mkdir`", lambda: os.mkdir("directory")
    yield "`symlink`", lambda: os.symlink("target", "link")
    yield "`rmdir`", lambda: os.rmdir("directory")
    yield "`stat` of a name that does not exist", lambda: os.path.exists("missing")
    yield "the same again", lambda: os.path.exists("missing")
    yield "`stat` of a file of the image, first use", lambda: os.stat(inside)
    yield "read it in Python, first use", read(inside)
    yield "read it again", read(inside)
    yield "list its directory, first use", lambda: os.listdir(folder)
    yield "list it again", lambda: os.listdir(folder)
    yield "append to the file of the image (copy-up)", lambda: open(inside, "a").write("#\n") and None
    yield "`import numpy, pandas`, first use", command("bin/python3", "-B", "-c", "import numpy, pandas")
    yield "`import numpy, pandas` again", command("bin/python3", "-B", "-c", "import numpy, pandas")
    yield "`pip install` of 400 modules (8 KiB each, compiled)", command(*pip)


def counted(connection, work):
    """Does something, and counts the requests of a connection."""
    on, trace = TRACING / "events/fuse/fuse_request_send/enable", TRACING / "trace"
    trace.write_text("")
    on.write_text("1")
    try:
        work()
    finally:
        on.write_text("0")
    found = LINE.findall(trace.read_text())
    return collections.Counter(name for number, name in found if int(number) == connection)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--envfs", type=Path, default=Path(__file__).parents[1] / "target/release/envfs")
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    if not (TRACING / "events").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "nodev", TRACING], check=True)
    (TRACING / "buffer_size_kb").write_text("65536")
    program = arguments.envfs.resolve()
    scratch = Path(tempfile.mkdtemp(prefix="envfs-requests-", dir=arguments.scratch))
    environment = os.environ | {"ENVFS_HOME": str(scratch), "XDG_RUNTIME_DIR": str(scratch)}

    def envfs(*words):
        subprocess.run([program, *words], env=environment, check=True, stdout=subprocess.DEVNULL)

    try:
        wheel = make_wheel(scratch)
        envfs("import", "-q", arguments.env, "e")
        envfs("mount", "e")
        os.chdir(scratch / "envs/e")
        # The first of its kind is answered once for all: that the daemon does not need it.
        new_file(), os.unlink("new"), os.listdir(".")
        connection = os.stat(".").st_dev & 0xFF | os.stat(".").st_dev >> 12 & 0xFFF00
        print("| operation | requests | in all |\n|---|---|---|")
        for title, work in operations(arguments.env, wheel):
            requests = counted(connection, work)
            told = ", ".join(f"{name} {count}" if count > 1 else name for name, count in requests.most_common())
            print(f"| {title} | {told or 'none'} | {sum(requests.values())} |", flush=True)
    finally:
        os.chdir("/")
        subprocess.run([program, "unmount", "e"], env=environment, check=False, capture_output=True)
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
