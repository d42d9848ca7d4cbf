#!/usr/bin/env python3
"""Counts which parts of an image a command reads, from a cold start.

    benches/regions.py --envfs target/debug/envfs NAME -- CMD [ARG…]

Unmounts the environment NAME, mounts it with its daemon under strace, runs the command with {prefix} replaced
by the mount point, and unmounts. Prints how many bytes of the image were read, in how many extents (ranges
without a gap between them), and in how many different regions of 1 MiB. Unlike a time, these counts depend on
the image and the command alone. They say what a disk has to seek, and what a network file system has to fetch.

The access profile must be off ("profile = \\"off\\"" in config.toml), so that no blocks are read ahead.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REGION = 1 << 20
READ = re.compile(r"pread64\(\d+<(?P<path>.*\.sqfs)>.*, (?P<length>\d+), (?P<offset>\d+)\) += (?P<got>\d+)$")


def reads(trace):
    """The ranges that were read of the image: (from, to)."""
    found = set()
    for log in trace.parent.glob(f"{trace.name}*"):
        for line in log.read_text(errors="replace").splitlines():
            if match := READ.search(line):
                start = int(match["offset"])
                found.add((start, start + int(match["got"])))
    return sorted(found)


def extents(ranges):
    """Joins ranges that touch."""
    joined = []
    for start, end in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return joined


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envfs", type=Path, default=Path("target/release/envfs"))
    parser.add_argument("name")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    program = str(arguments.envfs.resolve())
    subprocess.run([program, "unmount", "-q", arguments.name], check=False, stderr=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace"
        strace = ["strace", "-f", "-ff", "-y", "-e", "trace=pread64", "-o", str(trace)]
        # The daemon outlives the command, and strace waits for it.
        traced = subprocess.Popen([*strace, program, "mount", arguments.name], stdout=subprocess.PIPE, text=True)
        prefix = traced.stdout.readline().rstrip("\n")
        try:
            words = [word.replace("{prefix}", prefix) for word in arguments.command]
            done = subprocess.run(words, check=False)
        finally:
            subprocess.run([program, "unmount", "-q", arguments.name], check=True)
            traced.wait(timeout=60)
        joined = extents(reads(trace))
    regions = {part for start, end in joined for part in range(start // REGION, (end - 1) // REGION + 1)}
    print(f"{sum(end - start for start, end in joined)} bytes in {len(joined)} extents, {len(regions)} regions of 1 MiB")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
