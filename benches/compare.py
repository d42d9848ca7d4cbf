#!/usr/bin/env python3
"""Compares envfs with its alternatives on one tree, in one run.

    benches/compare.py --env DIR [--rounds 5] [--quick] [--user NAME] [--json FILE] [--chart FILE]
    benches/compare.py --image FILE --only import,find
    benches/compare.py --env DIR --only none --extra million,many,upper,changes

Competitors, as far as the host allows:
    plain    the tree itself, copied to the scratch file system
    kernel   kernel SquashFS under kernel overlayfs (needs root)
    fuse     squashfuse_ll under fuse-overlayfs
    envfs    this project, from target/release/envfs (or --envfs)

All read the same image, made by mksquashfs (zstd, 128 KiB blocks). Every workload runs on every
competitor in turn, round after round, each round beginning with another. "Cold" means: unmounted, page
cache dropped, mounted again. As root, each competitor and round of a workload that changes files has a new
ext4 file system for the changes (for envfs, the whole store); rows named tmpfs have them in memory. Figures are medians over the rounds; ratios are medians of the ratios
within a round, with the least and the greatest, so a machine that gets slower for a while slows both
sides. Processor time is that of the daemons alone. Run it on a quiet machine.

As root with --user NAME the mounts of envfs and fuse are that user's, and so is everybody who works in
any of the four; the kernel's are still mounted by root. As an ordinary user there are no kernel mounts
and no cold caches, and what needs them is left out.

Figures are held against what the project aims at. The exit status does not depend on that.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

# When root runs this, no files owned by root are left in the source tree.
sys.dont_write_bytecode = True

from comparison import chart, host, large, report, workloads
from comparison.competitors import Envfs, Fuse, Kernel, Plain, expand_image, make_image

EXTRAS = {"million": large.million, "many": large.many, "upper": large.upper, "changes": large.changes}


class Bench:
    """One run."""

    def __init__(self, arguments, scratch):
        self.scratch, self.rounds, self.program = scratch, arguments.rounds, arguments.envfs.resolve()
        self.account = host.Account(arguments.user)
        self.results, self.competitors, self.names = report.Results(), [], []
        self.tree = self.image = self.extra_environment = None

    def set_up(self, arguments):
        """Makes and mounts what is compared. Cut short, `competitors` has what there is to undo."""
        self.account.own(self.scratch)
        self.account.settle(self.scratch)
        workloads.choose_python(self.account)
        self.tree, self.image = self.materials(arguments)
        without = arguments.without.split(",")
        for competitor in (Plain, Kernel, Fuse, Envfs):
            why = "left out" if competitor.name in without else self.hindrance(competitor)
            if why:
                print(f"without {competitor.title}: {why}", file=sys.stderr)
                continue
            more = {Plain: [self.tree], Envfs: [self.program]}.get(competitor, [])
            self.competitors.append(competitor(self.scratch, self.image, self.account, *more))
            self.names.append(competitor.name)
        for competitor in self.competitors:
            competitor.fresh()

    def materials(self, arguments):
        tree, image = arguments.env, arguments.image
        if tree is None:
            tree = self.scratch / "source"
            expand_image(image.resolve(), tree)
        if image is None or self.account.uid != 0:
            # An ordinary user's image is made for him: what it holds is to be his everywhere.
            image = self.scratch / "image.sqfs"
            make_image(tree.resolve(), image, self.account)
        return tree.resolve(), image.resolve()

    @staticmethod
    def hindrance(competitor):
        if competitor is Kernel and os.geteuid() != 0:
            return "it needs root"
        if competitor is Fuse and Fuse.missing():
            return f"no {Fuse.missing()}"
        return None

    def mountable(self):
        """Those of this run that have an image under them, not those of a workload on request."""
        ours = (competitor for competitor in self.competitors if competitor.dir.parent == self.scratch)
        return [competitor for competitor in ours if competitor.name in ("kernel", "fuse", "envfs")]

    def commits(self):
        """An environment of its own, since a commit changes what lies below."""
        if self.extra_environment is None:
            self.extra_environment = Envfs(self.scratch, self.image, self.account, self.program, "commits")
            self.competitors.append(self.extra_environment)
        return self.extra_environment

    def measure(self, workload, competitor):
        """(figure, processor seconds of the daemons or None)"""
        if callable(workload.what):
            return workload.what(competitor), None
        if workload.fresh:
            competitor.fresh(workload.disk, workload.anywhere)
        if workload.prepare:
            competitor.shell(workload.prepare)
        if workload.cold:
            competitor.remount_cold()
        pids = competitor.daemons() if competitor.has_daemons else []
        used = host.cpu_seconds(pids)
        began = time.perf_counter()
        competitor.shell(workload.what)
        taken = time.perf_counter() - began
        cpu = host.cpu_seconds(pids) - used if pids else None
        if workload.fresh:
            competitor.repair(workload.makes, workload.spoils)
        return taken, cpu

    def run(self, workload):
        those = [c for c in self.competitors if c.name in self.names and (not workload.only or c.name in workload.only)]
        if not those:
            return
        for number in range(self.rounds):
            # Nobody is always the first, or always after the same.
            turn = number % len(those)
            for competitor in those[turn:] + those[:turn]:
                figure, cpu = self.measure(workload, competitor)
                self.results.add(workload.key, workload.title, workload.unit, competitor.name, figure, cpu)
        self.say(workload.key)

    def say(self, key):
        print(report.line(self.results, key, self.names), file=sys.stderr, flush=True)

    def workloads(self, arguments):
        m = workloads.Materials(self.tree, self.scratch, self.program, arguments.files, arguments.megabytes, arguments.wheel)
        chosen = [*workloads.reading(m), *workloads.changing(m), *workloads.commanding(m, self.commits)]
        words = arguments.only.split(",") if arguments.only else []
        for workload in chosen:
            if words and not any(word in workload.key or word in workload.title for word in words):
                continue
            if arguments.quick and workload.long:
                continue
            if workload.cold and not host.can_drop_caches():
                print(f"left out, caches cannot be dropped: {workload.title}", file=sys.stderr)
                continue
            yield workload


def interrupted(number, _frame):
    sys.exit(128 + number)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, metavar="DIR", help="directory to compare on, best an environment with numpy and pip")
    parser.add_argument("--image", type=Path, metavar="FILE", help="SquashFS image to compare on, instead or as well")
    parser.add_argument("--user", metavar="NAME", help="as root: whose the mounts of envfs and fuse are, and who works in all")
    parser.add_argument("--rounds", type=int, metavar="N", help="[default: 5; 3 with --quick]")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and files, without what takes long")
    parser.add_argument("--only", metavar="WORD,…", help="only workloads with one of these words in name or key; `none` for none")
    parser.add_argument("--extra", default="", metavar="WORD[=N],…", help=f"also: {', '.join(EXTRAS)}")
    parser.add_argument("--without", default="", metavar="NAME,…", help="competitors to leave out")
    parser.add_argument("--files", type=int, metavar="N", help="files to create, delete and unpack [default: 20000; 4000 with --quick]")
    parser.add_argument("--megabytes", type=int, metavar="N", help="size of the large write [default: 512; 256 with --quick]")
    parser.add_argument("--wheel", type=Path, action="append", default=[], metavar="FILE", help="wheel to install [default: one that is made]")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to work [default: /var/tmp]")
    parser.add_argument("--envfs", type=Path, metavar="FILE", default=Path("target/release/envfs"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, bars and what they were measured on")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the ratios to kernel squashfs + overlayfs as SVG")
    arguments = parser.parse_args()
    if not (arguments.env or arguments.image):
        parser.error("--env or --image says what to compare on")
    if arguments.user and os.geteuid() != 0:
        parser.error("--user needs root")
    extras = [word.partition("=") for word in arguments.extra.split(",") if word]
    if any(word not in EXTRAS or (count and not count.isdigit()) for word, _, count in extras):
        parser.error(f"--extra knows {', '.join(EXTRAS)}, each with =COUNT where another number is wanted")
    arguments.extra = [(word, [int(count)] if count else []) for word, _, count in extras]
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 5)
    arguments.files = arguments.files or (4000 if arguments.quick else 20000)
    arguments.megabytes = arguments.megabytes or (256 if arguments.quick else 512)
    arguments.wheel = [wheel.resolve() for wheel in arguments.wheel]
    return arguments


def tell(bench, arguments):
    """Prints and writes the figures there are."""
    bench.results.derive()
    print(report.text(bench.results, bench.names))
    if arguments.json:
        how = {"user": bench.account.name, "rounds": bench.rounds, "files": arguments.files, "megabytes": arguments.megabytes}
        described = host.describe(bench.scratch, bench.program)
        arguments.json.write_text(json.dumps(report.as_json(bench.results, described, how), indent=1) + "\n")
    if arguments.chart:
        arguments.chart.write_text(chart.draw(bench.results, bench.names))


def main():
    arguments = parse()
    for number in host.INTERRUPTS:
        signal.signal(number, interrupted)
    scratch = Path(tempfile.mkdtemp(prefix="envfs-bench-", dir=arguments.scratch or "/var/tmp")).resolve()
    # The user of --user has to get through; what is in it has modes of its own.
    scratch.chmod(0o755)
    bench = Bench(arguments, scratch)
    try:
        bench.set_up(arguments)
        print(report.heading(bench.names), file=sys.stderr)
        try:
            for workload in bench.workloads(arguments):
                bench.run(workload)
            for word, count in arguments.extra:
                EXTRAS[word](bench, *count)
        finally:
            # Also what a run has that is ended early.
            tell(bench, arguments)
    except host.Failed as failure:
        sys.exit(str(failure))
    finally:
        host.clean_up(scratch, bench.competitors)


if __name__ == "__main__":
    main()
