#!/usr/bin/env python3
"""Measures checkpoints, undo, automatic checkpoints and reads through frozen layers.

    benches/undo.py [--envfs target/release/envfs] [--files 10000] [--rounds 5]

Makes a store below the temporary directory. pip needs no network: it installs a package that this script makes. Figures are medians
over the rounds, in milliseconds of wall time; commands include starting the program. Run it on a quiet machine.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path


class Bench:
    """One environment in a store of its own."""

    def __init__(self, program, scratch):
        self.program, self.scratch = program, scratch
        self.env = dict(os.environ, ENVFS_HOME=str(scratch / "store"), PIP_DISABLE_PIP_VERSION_CHECK="1")
        self.env.pop("ENVFS_ENV", None)

    def envfs(self, *words):
        """Runs a command. Returns its output and the milliseconds that it took."""
        began = time.perf_counter()
        done = subprocess.run([self.program, *words], env=self.env, check=True, capture_output=True, text=True)
        return done.stdout, 1000 * (time.perf_counter() - began)

    def configure(self, text):
        """Writes the configuration of the store."""
        (self.scratch / "store").mkdir(exist_ok=True)
        (self.scratch / "store" / "config.toml").write_text(text)

    def prefix(self, name):
        """Mounts an environment."""
        self.envfs("mount", name)
        return Path(json.loads(self.envfs("paths", "--json", name)[0])["prefix"])


def wheel(directory, version, files):
    """Writes a wheel of a package with this number of modules."""
    directory.mkdir(exist_ok=True)
    info = f"measured-{version}.dist-info"
    content = {f"measured/m{number}.py": f"VALUE = {number}\n" * 20 for number in range(files)}
    content["measured/__init__.py"] = f"__version__ = '{version}'\n"
    content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: measured\nVersion: {version}\n"
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},,\n" for name in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"measured-{version}-py3-none-any.whl", "w") as archive:
        for name, text in [*content.items(), (f"{info}/RECORD", record)]:
            archive.writestr(name, text)


def checkpoints(bench, files, rounds):
    """Checkpoints and undo of changes of different sizes."""
    for count in (1, files // 10, files):
        made, undone = [], []
        for _ in range(rounds):
            prefix = bench.prefix("e")
            changed = prefix / "changed"
            shutil.rmtree(changed, ignore_errors=True)
            changed.mkdir()
            for number in range(count):
                (changed / f"f{number}").write_text("changed\n")
            made.append(bench.envfs("checkpoint", "e")[1])
            for number in range(count):
                (changed / f"f{number}").write_text("changed again\n")
            undone.append(bench.envfs("undo", "e")[1])
            bench.envfs("discard", "-y", "e")
            bench.envfs("gc", "e")
        show(f"checkpoint of {count} changed files", made)
        show(f"undo of {count} changed files", undone)


def reads(bench, rounds):
    """Cold names and content through frozen layers."""
    for layers in (0, 1, 8, 32):
        bench.envfs("discard", "-y", "e")
        bench.envfs("gc", "e")
        prefix = bench.prefix("e")
        for number in range(layers):
            (prefix / f"layer{number}").write_text("")
            bench.envfs("checkpoint", "e")
        taken = []
        for _ in range(rounds):
            bench.envfs("unmount", "e")
            bench.envfs("mount", "e")
            began = time.perf_counter()
            for path in sorted((prefix / "tree").rglob("*")):
                if path.is_file():
                    path.read_bytes()
            taken.append(1000 * (time.perf_counter() - began))
        show(f"reading the tree through {layers} frozen layers", taken)


def pip(bench, rounds):
    """pip install with and without automatic checkpoints, in turn."""
    links = bench.scratch / "wheels"
    wheel(links, "1.0", 200)
    wheel(links, "2.0", 200)
    bench.envfs("create", "v", "--venv")
    install = ["install", "-q", "--no-index", f"--find-links={links}"]
    taken = {True: [], False: []}
    for number in range(2 * rounds):
        is_on = number % 2 == 0
        bench.envfs("unmount", "v")
        bench.configure(f"[history]\nauto_checkpoint = {str(is_on).lower()}\n")
        prefix = bench.prefix("v")
        run = lambda *words: subprocess.run([prefix / "bin/python", "-m", "pip", *words], env=bench.env, check=True)
        run(*install, "measured==1.0")
        began = time.perf_counter()
        run(*install, "-U", "measured")
        taken[is_on].append(1000 * (time.perf_counter() - began))
        if is_on:
            bench.envfs("undo", "v")
            version = subprocess.run(
                [prefix / "bin/python", "-c", "import measured; print(measured.__version__)"],
                env=bench.env, check=True, capture_output=True, text=True,
            ).stdout
            assert version == "1.0\n", version
        bench.envfs("discard", "-y", "v")
        bench.envfs("gc", "v")
    show("pip install -U with automatic checkpoints", taken[True])
    show("pip install -U without", taken[False])
    log = (bench.scratch / "store/store/v/daemon.log").read_text()
    millis = [float(found) for found in re.findall(r"automatic checkpoint.*millis=([0-9.e-]+)", log)]
    show("an automatic checkpoint, in the request", millis)
    bench.envfs("unmount", "v")


def show(what, taken):
    """Prints a figure."""
    print(f"{what}: {statistics.median(taken):.1f} ms ({min(taken):.1f} to {max(taken):.1f})", flush=True)


def main():
    """Runs all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envfs", type=Path, default=Path("target/release/envfs"))
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="envfs-undo-"))
    bench = Bench(arguments.envfs.resolve(), scratch)
    try:
        source = scratch / "source"
        for number in range(arguments.files):
            path = source / "tree" / f"d{number // 100}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number}\n" * 50)
        bench.envfs("import", str(source), "e")
        checkpoints(bench, arguments.files, arguments.rounds)
        reads(bench, arguments.rounds)
        bench.envfs("unmount", "e")
        pip(bench, arguments.rounds)
    finally:
        for name in ("e", "v"):
            subprocess.run([bench.program, "unmount", name], env=bench.env, capture_output=True)
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
