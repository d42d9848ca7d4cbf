#!/usr/bin/env python3
"""Polling against none: the same environment mounted twice, with `poll = "auto"` and with "off".

    benches/polling.py --env DIR [--rounds 7] [--only KEY,KEY] [--scratch DIR] [--poll VALUE]
    benches/polling.py --env DIR --other PROGRAM    # against another build, with its defaults

Every workload runs in both mounts in turn, each round beginning with the other one. Figures are
medians; ratios are medians of the ratios within a round, with the least and the greatest. Processor
time is that of the daemon. "Cold" means: unmounted, page cache dropped (as root), mounted anew. The stores
are below --scratch, by default /dev/shm, so that no disk is measured. Run it when nothing else runs.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

# When root runs this, no files owned by root are left in the source tree.
sys.dont_write_bytecode = True

from pathlib import Path

from comparison import host
from comparison.workloads import make_wheel

PYTHON = sys.executable

CREATE = """
import os, sys
for i in range(5000):
    if i % 200 == 0: os.makedirs(f'new/{i // 200}')
    with open(f'new/{i // 200}/f{i}', 'wb') as f: f.write(b'x' * 2048)
"""
SQLITE = """
import os, sqlite3
c = sqlite3.connect('bench.db'); c.execute('create table t(a)'); c.commit()
for i in range(200): c.execute('insert into t values(?)', (i,)); c.commit()
c.close(); os.unlink('bench.db')
"""
RANDOM = """
import os, random, sys
f = os.open(sys.argv[1], os.O_RDONLY); n = os.fstat(f).st_size; r = random.Random(1)
for _ in range(4000): os.pread(f, 4096, r.randrange(0, n - 4096))
"""
SPIN = "n = 0\nfor i in range(12_000_000): n += i"
IMPORT = "import numpy, pandas, sklearn, matplotlib.pyplot"


def script(text, *words):
    return [PYTHON, "-c", text, *words]


def shell(text):
    return ["sh", "-c", text]


def reading(readers):
    return shell(f"find lib -type f -print0 | xargs -0 -P{readers} -n64 cat >/dev/null")


def workloads(tree, wheel):
    """Key, preparation that is not measured, command, whether it is cold."""
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    largest = str(max(files, key=lambda path: path.stat().st_size).relative_to(tree))
    site = next(iter(tree.glob("lib/python3*/site-packages"))).relative_to(tree)
    packages = [path for path in (tree / site).iterdir() if path.is_dir()]
    package = str(site / max(packages, key=lambda path: sum(1 for _ in path.rglob("*"))).name)
    stat = shell("find . -printf '%s' >/dev/null")
    # What is compared takes as long as the two jobs, while requests come one after the other.
    beside = shell(
        "while :; do find . -name '*.h' -printf %s >/dev/null; cat lib/*/*/*/*.py >/dev/null; mkdir -p t; "
        "touch t/a; rm t/a; done & requests=$!; "
        f'{PYTHON} -c "{SPIN}" & a=$!; {PYTHON} -c "{SPIN}" & wait $a $!; kill $requests; wait $requests || true'
    )
    yield "create", shell("rm -rf new"), script(CREATE), False
    yield "delete", script(CREATE), shell("rm -r new"), False
    yield "stat-cold", None, stat, True
    yield "stat-warm", stat, stat, False
    yield "find-cold", None, shell("find . -name '*.h' >/dev/null"), True
    yield "tar-cold", None, shell("tar cf - . | cat >/dev/null"), True
    yield "tar-warm", shell("tar cf - . | cat >/dev/null"), shell("tar cf - . | cat >/dev/null"), False
    yield "remove-package", None, shell(f"rm -r {package}"), True
    yield "sqlite", None, script(SQLITE), False
    yield "import-cold", None, ["bin/python3", "-B", "-c", IMPORT], True
    yield "import-warm", ["bin/python3", "-B", "-c", IMPORT], ["bin/python3", "-B", "-c", IMPORT], False
    yield "read-1-cold", None, reading(1), True
    yield "read-2-cold", None, reading(2), True
    yield "read-8-cold", None, reading(8), True
    yield "sequential-cold", None, shell(f"cat {largest} >/dev/null"), True
    yield "random-cold", None, script(RANDOM, largest), True
    pip = f"bin/python3 -m pip install -q --no-index --no-deps --root-user-action=ignore {wheel}"
    yield "pip-install", shell("bin/python3 -m pip uninstall -qy --root-user-action=ignore envfs_bench"), shell(pip), False
    yield "git-status", shell("test -d .git || { git init -q . && git add lib/*/*/*/*.py && git commit -qm x; }"), shell(
        "git status >/dev/null"
    ), False
    yield "jobs-beside", None, beside, False


class Mount:
    """A store of its own with one environment."""

    def __init__(self, name, program, scratch, image, poll):
        self.name, self.program, self.home = name, program, scratch / name
        self.home.mkdir()
        setting = poll if poll.isdigit() else f'"{poll}"'
        if poll != "default":
            (self.home / "config.toml").write_text(f"[daemon]\npoll = {setting}\n")
        (self.home / "run").mkdir(mode=0o700)
        self.environment = os.environ | {
            "ENVFS_HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "user.email",
            "GIT_CONFIG_VALUE_0": "bench@example.com",
            "GIT_AUTHOR_NAME": "bench",
            "GIT_COMMITTER_NAME": "bench",
        }
        self.prefix = self.home / "envs" / "e"
        self.envfs("import", "-q", image, "e")

    def envfs(self, *words):
        words = [str(word) for word in (self.program, *words)]
        return subprocess.run(words, env=self.environment, check=True, capture_output=True, text=True).stdout

    def run(self, command):
        subprocess.run(command, cwd=self.prefix, env=self.environment, check=True, stderr=subprocess.DEVNULL)

    def processor_time(self):
        holder = self.home / "store/e/lock.holder"
        pid = holder.read_text().split('"pid":')[1].split(",")[0].strip(" }")
        # In nanoseconds: many workloads need less than a tick of the clock of host.cpu_seconds.
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def fresh(self):
        """Mounts anew without changes, with nothing in the kernel's caches."""
        self.unmount()
        self.envfs("discard", "-y", "e")
        if host.can_drop_caches():
            host.drop_caches()
        self.envfs("mount", "e")

    def unmount(self):
        if os.path.ismount(self.prefix):
            self.envfs("unmount", "e")

    def measure(self, prepare, command, is_cold):
        if is_cold:
            self.fresh()
        if prepare:
            self.run(prepare)
        used, began = self.processor_time(), time.monotonic()
        self.run(command)
        took = time.monotonic() - began
        return took, self.processor_time() - used


def spread(ratios):
    return f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--envfs", type=Path, default=Path(__file__).parents[1] / "target/release/envfs")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--poll", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    program = arguments.envfs.resolve()
    # Ended by a signal, it unmounts and removes what it made.
    for number in host.INTERRUPTS:
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    scratch = Path(tempfile.mkdtemp(prefix="envfs-polling-", dir=arguments.scratch))
    mounts = []
    try:
        image = scratch / "image.sqfs"
        subprocess.run([program, "image", "pack", "-q", arguments.env, image], check=True)
        other = ("other", arguments.other.resolve(), "default") if arguments.other else ("off", program, "off")
        for name, own, poll in (("polling", program, arguments.poll), other):
            mounts.append(Mount(name, own, scratch, image, poll))
        print(f"{'workload':16} {'polling':>9} {other[0]:>9}   ratio                daemon's processor time")
        for key, prepare, command, is_cold in workloads(arguments.env, make_wheel(scratch)):
            if arguments.only and key not in arguments.only.split(","):
                continue
            for mount in mounts:
                mount.fresh()
                mount.measure(prepare, command, is_cold)
            figures = {mount.name: [] for mount in mounts}
            for number in range(arguments.rounds):
                for mount in mounts if number % 2 else mounts[::-1]:
                    figures[mount.name].append(mount.measure(prepare, command, is_cold))
            ours, theirs = figures.values()
            times = [statistics.median(took for took, _ in each) for each in (ours, theirs)]
            walls = [a[0] / b[0] for a, b in zip(ours, theirs)]
            used = [a[1] / max(b[1], 1e-6) for a, b in zip(ours, theirs)]
            seconds = [statistics.median(cpu for _, cpu in each) for each in (ours, theirs)]
            print(
                f"{key:16} {times[0]:8.3f}s {times[1]:8.3f}s   {spread(walls)}   {spread(used)}"
                f"   {seconds[0]:.2f} s, {seconds[1]:.2f} s",
                flush=True,
            )
    finally:
        host.clean_up(scratch, mounts)


if __name__ == "__main__":
    main()
