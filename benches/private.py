#!/usr/bin/env python3
"""Measures private sessions of one environment.

    benches/private.py --envfs target/release/envfs --env NAME [--rounds N] [--processes N] [--cold]

Prints, as medians: the time of one `envfs run --private --read-only NAME -- true` that starts the
session, of one that joins a running session, and of many at once; the number of supervisors that
these had; and the memory of a supervisor beside another one of the same image, when both are idle:
PSS, and what is private to it. With --cold (as root), the kernel's caches are dropped before many
start at once.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import time


def supervisors():
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.name.isdigit() and b"__serve" in words and b"--private" in words:
            found.append(int(entry.name))
    return found


def wait_for_end():
    deadline = time.monotonic() + 30
    while supervisors():
        if time.monotonic() > deadline:
            raise SystemExit("a supervisor does not end")
        time.sleep(0.02)


def memory_kib(pid):
    """PSS and private memory."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"]


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envfs", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    words = [args.envfs, "run", "--private", "--read-only", args.env]

    def timed():
        begin = time.monotonic()
        subprocess.run([*words, "true"], check=True)
        return (time.monotonic() - begin) * 1000

    def hold(job):
        holder = subprocess.Popen(
            [*words, "sh", "-c", "echo; cat >/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "SLURM_JOB_ID": job} if job else None,
        )
        holder.stdout.readline()
        return holder

    def release(holder):
        holder.stdin.close()
        holder.wait()

    cold, many, counts = [], [], []
    for _ in range(args.rounds):
        wait_for_end()
        cold.append(timed())
        wait_for_end()
        if args.cold:
            drop_caches()
        begin = time.monotonic()
        started = [subprocess.Popen([*words, "true"]) for _ in range(args.processes)]
        if any(process.wait() != 0 for process in started):
            raise SystemExit("a command failed")
        many.append((time.monotonic() - begin) * 1000)
        counts.append(len(supervisors()))
    wait_for_end()
    holder = hold(None)
    first = supervisors()
    joined = [timed() for _ in range(args.rounds)]
    second = hold("1")
    added = [pid for pid in supervisors() if pid not in first]
    # A supervisor gives pages of its program back when it has settled.
    time.sleep(3)
    memory = max((memory_kib(pid) for pid in added), default=(0, 0))
    release(second)
    release(holder)
    print(f"start a session: {statistics.median(cold):.1f} ms")
    print(f"join a session: {statistics.median(joined):.1f} ms")
    print(f"{args.processes} at once: {statistics.median(many):.0f} ms, {max(counts)} supervisor(s)")
    print(f"one more supervisor: PSS {memory[0] / 1024:.1f} MiB, private {memory[1] / 1024:.1f} MiB")


if __name__ == "__main__":
    main()
