#!/usr/bin/env python3
"""Side by side: envfs and what one would use instead, on one tree, in one run.

    benches/compare.py --tree DIR [--rounds 3] [--only WORD,…] [--json FILE] [--svg FILE]

Competitors, as far as the host allows (all need root to set up):
    plain    the tree itself, copied to the scratch file system
    kernel   kernel SquashFS under kernel overlayfs
    fuse     squashfuse_ll under fuse-overlayfs
    envfs    this project, from target/release/envfs (or --envfs)

All read the same image, made by mksquashfs (zstd, 128 KiB blocks). Every workload runs on every
competitor in turn, round after round. "cold" means: unmounted, page cache dropped, mounted anew.
Figures are seconds, medians over the rounds; ratios are medians of the ratios within a round, so a
machine that gets slower for a while slows both sides. Run it on a quiet machine.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(*command, check=True, **kwargs):
    """Runs a command, quietly unless it fails. Interrupted, it ends what the command has started, too:
    a forgotten reader would keep a mount in use."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **kwargs,
    )
    try:
        _, errors = process.communicate()
    except BaseException:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        raise
    if check and process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{errors.decode(errors='replace')}")


def mounts_below(directory):
    """The mount points below a directory, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    points = (Path(line.split(" ")[4]) for line in lines)
    return [point for point in reversed(list(points)) if directory in point.parents]


def interrupted(number, _frame):
    sys.exit(128 + number)


def clean_up(scratch, competitors):
    """Unmounts whatever is mounted below the scratch directory, and only then removes it."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    for competitor in competitors:
        competitor.unmount()
    for point in mounts_below(scratch):
        # Half mounted, or in use by what could not be ended.
        run("umount", "-l", point, check=False)
    left = mounts_below(scratch)
    if left:
        print(f"still mounted, so {scratch} stays: {' '.join(map(str, left))}", file=sys.stderr)
    else:
        shutil.rmtree(scratch, ignore_errors=True)


INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Competitor:
    """A way to use the image as a writable directory."""

    def __init__(self, scratch, image):
        self.dir = scratch / self.name
        self.image = image
        self.root = self.dir / "merged"
        self.root.mkdir(parents=True)

    def fresh(self):
        """Mounts with an empty upper."""
        self.unmount()
        for part in ("upper", "work"):
            shutil.rmtree(self.dir / part, ignore_errors=True)
            (self.dir / part).mkdir()
        self.mount()

    def remount_cold(self):
        self.unmount()
        drop_caches()
        self.mount()


class Plain(Competitor):
    name = "plain"

    def __init__(self, scratch, image, tree):
        super().__init__(scratch, image)
        self.tree, self.is_used = tree, False
        self.root = self.dir / "tree"

    def mount(self):
        pass

    def unmount(self):
        pass

    def fresh(self):
        shutil.rmtree(self.root, ignore_errors=True)
        run("cp", "-a", self.tree, self.root)

    def remount_cold(self):
        drop_caches()


class Kernel(Competitor):
    name = "kernel"

    def mount(self):
        lower = self.dir / "lower"
        lower.mkdir(exist_ok=True)
        run("mount", "-o", "loop,ro", "-t", "squashfs", self.image, lower)
        options = f"lowerdir={lower},upperdir={self.dir}/upper,workdir={self.dir}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, self.root)

    def unmount(self):
        run("umount", self.root, check=False)
        run("umount", self.dir / "lower", check=False)


class Fuse(Competitor):
    name = "fuse"

    def mount(self):
        lower = self.dir / "lower"
        lower.mkdir(exist_ok=True)
        run(shutil.which("squashfuse_ll") or "squashfuse", self.image, lower)
        options = f"lowerdir={lower},upperdir={self.dir}/upper,workdir={self.dir}/work"
        run("fuse-overlayfs", "-o", options, self.root)

    def unmount(self):
        run("umount", self.root, check=False)
        run("umount", self.dir / "lower", check=False)


class Envfs(Competitor):
    name = "envfs"

    def __init__(self, scratch, image, program):
        super().__init__(scratch, image)
        self.program = program
        self.call("import", image, "bench", "--prefix", self.root)

    def call(self, *words, check=True):
        run(self.program, "--home", self.dir / "home", *words, check=check)

    def mount(self):
        self.call("mount", "bench")

    def unmount(self):
        self.call("unmount", "bench", check=False)

    def fresh(self):
        self.unmount()
        self.call("discard", "bench", "-y", check=False)
        self.call("gc", "bench", "--keep", "1", check=False)
        self.mount()


def package(root):
    """The largest installed Python package, or the largest directory of the tree."""
    places = list(root.glob("lib/python3*/site-packages/*/")) or [p for p in root.iterdir() if p.is_dir()]
    return max(places, key=lambda p: sum(1 for _ in p.rglob("*")))


def largest(root):
    files = (p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    return max(files, key=lambda p: p.stat().st_size)


READ_ALL = "find . -type f -print0 | xargs -0 -P{} -n64 cat > /dev/null"
PYTHON = (
    "import os,sys\nd=sys.argv[1]\nos.makedirs(d)\n"
    "for i in range(int(sys.argv[2])):\n"
    "  s=f'{d}/{i//200}'\n  if i%200==0: os.mkdir(s)\n"
    "  open(f'{s}/f{i}','wb').write(b'x'*2048)"
)
RANDOM = (
    "import os,random,sys\nf=os.open(sys.argv[1],os.O_RDONLY);n=os.fstat(f).st_size\nr=random.Random(1)\n"
    "for _ in range(4000): os.pread(f,4096,r.randrange(0,max(n-4096,1)))"
)
SQLITE = (
    "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1]);c.execute('create table t(a)');c.commit()\n"
    "for i in range(200): c.execute('insert into t values(?)',(i,));c.commit()"
)


def workloads(tree, files):
    """(name, cold?, needs a fresh upper?, preparation, shell command) — {p} is a package of the tree."""
    p = package(tree).relative_to(tree)
    big = largest(tree).relative_to(tree)
    python = sys.executable
    yield "find, cold", True, False, None, "find . -size +1000000k"
    yield "find, warm", False, False, "find . -size +1000000k", "find . -size +1000000k"
    yield "tar everything, cold", True, False, None, "tar cf - . | cat > /dev/null"
    yield "read everything, 1 reader, cold", True, False, None, READ_ALL.format(1)
    yield "read everything, 2 readers, cold", True, False, None, READ_ALL.format(2)
    yield "read everything, 1 reader, warm", False, False, READ_ALL.format(1), READ_ALL.format(1)
    yield "large file, sequential, cold", True, False, None, f"cat '{big}' > /dev/null"
    yield "large file, random 4 KiB, cold", True, False, None, f"{python} -c '{RANDOM}' '{big}'"
    if list(tree.glob("lib/python3*/site-packages/numpy")) and (tree / "bin/python3").exists():
        imports = "LD_LIBRARY_PATH=lib bin/python3 -B -c 'import numpy,pandas,sklearn,matplotlib.pyplot'"
        yield "import numpy pandas sklearn matplotlib, cold", True, False, None, imports
        yield "import numpy pandas sklearn matplotlib, warm", False, False, imports, imports
    create = f"{python} -c \"{PYTHON}\" made {files}"
    yield f"create {files} files", False, True, None, create
    yield f"delete {files} new files", False, True, create, "rm -rf made"
    yield "delete a lower package", False, True, None, f"rm -rf '{p}'"
    yield "touch a lower package", False, True, None, f"find '{p}' -exec touch {{}} +"
    yield "rename a lower directory", False, True, None, f"mv '{p}' '{p}-moved'"
    yield "write 512 MB and fsync", False, True, None, "dd if=/dev/zero of=big bs=1M count=512 conv=fsync"
    yield "sqlite, 200 transactions", False, True, None, f"{python} -c \"{SQLITE}\" t.db"


def measure(competitor, cold, fresh, prepare, command):
    if fresh:
        competitor.fresh()
    if prepare:
        run("sh", "-c", prepare, cwd=competitor.root)
    if cold:
        competitor.remount_cold()
    began = time.perf_counter()
    run("sh", "-c", command, cwd=competitor.root)
    return time.perf_counter() - began


def table(results, names):
    width = max(len(name) for name in results) + 2
    lines = ["workload".ljust(width) + "".join(f"{name:>10}" for name in names) + "   envfs/kernel  envfs/fuse  envfs/plain"]
    for workload, times in results.items():
        line = workload.ljust(width)
        line += "".join(f"{statistics.median(times[n]):10.3f}" if n in times else f"{'-':>10}" for n in names)
        for other, space in (("kernel", 15), ("fuse", 12), ("plain", 13)):
            if other in times and "envfs" in times:
                ratios = [a / b for a, b in zip(times["envfs"], times[other])]
                line += f"{statistics.median(ratios):{space}.2f}"
            else:
                line += f"{'-':>{space}}"
        lines.append(line)
    return "\n".join(lines)


def chart(results, names):
    """A bar for each competitor and workload, as multiples of the kernel's time (or the first's)."""
    colours = {"plain": "#999", "kernel": "#4477aa", "fuse": "#ee7733", "envfs": "#228833"}
    rows, y = [], 30
    for workload, times in results.items():
        base = statistics.median(times.get("kernel") or next(iter(times.values())))
        rows.append(f'<text x="0" y="{y + 12}" font-weight="bold">{workload}</text>')
        y += 18
        for name in names:
            if name in times:
                ratio = statistics.median(times[name]) / base
                length = min(ratio, 8) * 60
                rows.append(f'<rect x="60" y="{y}" width="{length:.0f}" height="10" fill="{colours[name]}"/>')
                rows.append(f'<text x="0" y="{y + 9}">{name}</text>')
                rows.append(f'<text x="{66 + length:.0f}" y="{y + 9}">{ratio:.2f}</text>')
                y += 13
        y += 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{y + 10}" font-family="sans-serif" font-size="11">'
    note = '<text x="0" y="14">time as a multiple of kernel SquashFS + overlayfs; shorter is better</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', note, *rows, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True, help="directory to compare on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=20000, help="files to create and delete")
    parser.add_argument("--only", help="only workloads with one of these words, separated by commas")
    parser.add_argument("--without", default="", help="competitors to leave out, separated by commas")
    parser.add_argument("--scratch", type=Path, help="where to work [a directory below /var/tmp]")
    parser.add_argument("--envfs", type=Path, default=Path("target/release/envfs"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the competitors need root to be mounted, and cold caches need root to be dropped")
    tree, program = arguments.tree.resolve(), arguments.envfs.resolve()
    for number in INTERRUPTS:
        signal.signal(number, interrupted)
    scratch = Path(tempfile.mkdtemp(prefix="envfs-bench-", dir=arguments.scratch or "/var/tmp")).resolve()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    competitors = []
    try:
        image = scratch / "image.sqfs"
        run("mksquashfs", tree, image, "-comp", "zstd", "-b", "128K", "-no-progress", "-quiet")
        without = arguments.without.split(",")
        if "plain" not in without:
            competitors.append(Plain(scratch, image, tree))
        if "kernel" not in without:
            competitors.append(Kernel(scratch, image))
        if "fuse" not in without and shutil.which("fuse-overlayfs"):
            competitors.append(Fuse(scratch, image))
        competitors.append(Envfs(scratch, image, program))
        for competitor in competitors:
            competitor.fresh()
        names = [competitor.name for competitor in competitors]
        results = {}
        for name, *how in workloads(tree, arguments.files):
            if arguments.only and not any(word in name for word in arguments.only.split(",")):
                continue
            results[name] = {}
            for _ in range(arguments.rounds):
                for competitor in competitors:
                    results[name].setdefault(competitor.name, []).append(measure(competitor, *how))
            print(table({name: results[name]}, names).splitlines()[1], file=sys.stderr, flush=True)
        print(table(results, names))
        if arguments.json:
            arguments.json.write_text(json.dumps({"tree": str(tree), "seconds": results}, indent=1))
        if arguments.svg:
            arguments.svg.write_text(chart(results, names))
    finally:
        clean_up(scratch, competitors)


if __name__ == "__main__":
    main()
