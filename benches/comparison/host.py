"""Commands, accounts, caches, file systems and mounts of the machine."""

import json
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A command failed: what it was and what it said."""


class Account:
    """The user that commands run as: the current one, or as root another one."""

    def __init__(self, name=None):
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
        self.name, self.uid, self.gid = entry.pw_name, entry.pw_uid, entry.pw_gid
        self.is_other = self.uid != os.geteuid()
        self.environment = None

    def settle(self, scratch):
        """Gives the account a home and a place for sockets below the scratch directory, so that it
        neither finds nor leaves anything in its own."""
        home = scratch / f"home-{self.name}"
        for directory in (home, home / "run", home / "tmp"):
            directory.mkdir(mode=0o700)
            self.own(directory)
        left_out = ("ENVFS_", "XDG_", "PYTHON", "PIP_", "GIT_", "LD_", "VIRTUAL_ENV", "CONDA")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)}
        self.environment = kept | {
            "HOME": str(home),
            "USER": self.name,
            "XDG_RUNTIME_DIR": str(home / "run"),
            "TMPDIR": str(home / "tmp"),
            "LC_ALL": "C",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_CONFIG_FILE": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "bench",
            "GIT_AUTHOR_EMAIL": "bench@example.com",
            "GIT_COMMITTER_NAME": "bench",
            "GIT_COMMITTER_EMAIL": "bench@example.com",
        }

    def own(self, path):
        if self.is_other:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def directory(self, path):
        """Makes a directory that belongs to the account."""
        path.mkdir(parents=True, exist_ok=True)
        self.own(path)
        return path

    def run(self, *words, check=True, capture=False):
        """Runs a command, quietly unless it fails, and returns what it printed if that is wanted.

        Interrupted, it ends what the command has started, too: a forgotten reader would keep a mount
        in use.
        """
        switch = {"user": self.uid, "group": self.gid, "extra_groups": []} if self.is_other else {}
        process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env=self.environment,
            **switch,
        )
        try:
            output, errors = process.communicate()
        except BaseException:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            raise
        if check and process.returncode != 0:
            raise Failed(f"{' '.join(map(str, words))[:400]}\n{errors.decode(errors='replace')[-2000:]}")
        return output

    def shell(self, directory, command, **options):
        """Runs a shell command in a directory that only the account may be able to enter."""
        return self.run("sh", "-c", f'cd "$0" && {command}', directory, **options)


class Disk:
    """A new file system for each round of a workload that creates or deletes files.

    ext4 avoids the inodes of files deleted within the last 35 s, so creating files after deleting others
    on one file system is several times slower for every competitor. Without root it cannot be made, and
    changes stay on the scratch file system.
    """

    SIZE = 8 << 30
    #: How many files there is room for.
    inodes = 200_000

    def __init__(self, directory, account):
        self.directory, self.file, self.account = directory, directory.with_suffix(".ext4"), account
        self.is_mounted = False

    def make(self, kind):
        self.unmount()
        if os.geteuid() != 0:
            return
        root = Account()
        self.directory.mkdir(exist_ok=True)
        if kind == "tmpfs":
            root.run("mount", "-t", "tmpfs", "-o", "size=50%", "tmpfs", self.directory)
        else:
            self.file.unlink(missing_ok=True)
            with open(self.file, "wb") as file:
                file.truncate(self.SIZE)
            # Nothing is left to the kernel's thread that initialises inode tables after the mount.
            now = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
            root.run("mkfs.ext4", "-q", "-F", "-N", self.inodes, "-E", now, self.file)
            root.run("mount", "-o", "loop", self.file, self.directory)
        self.is_mounted = True
        self.account.own(self.directory)

    def unmount(self):
        if self.is_mounted:
            # A daemon of a competitor may have files open for a moment after its mount has ended.
            deadline = time.monotonic() + 30
            while os.path.ismount(self.directory):
                is_last = time.monotonic() > deadline
                Account().run("umount", self.directory, check=is_last)
                time.sleep(0 if is_last else 0.1)
            self.file.unlink(missing_ok=True)
            self.is_mounted = False


def can_drop_caches():
    return os.access("/proc/sys/vm/drop_caches", os.W_OK)


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def mounts_below(directory):
    """The mount points below a directory, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    points = (Path(line.split(" ")[4]) for line in lines)
    return [point for point in reversed(list(points)) if directory in point.parents]


def unmount_lazily(point):
    tool = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*tool, str(point)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def clean_up(scratch, competitors):
    """Unmounts whatever is mounted below the scratch directory, and only then removes it."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    for competitor in competitors:
        competitor.unmount()
    for point in mounts_below(scratch):
        # Half mounted, or in use by a process that could not be ended.
        unmount_lazily(point)
    for _ in range(50):
        # Daemons whose mount is gone end by themselves, and may still be writing.
        if not processes_about(scratch):
            break
        time.sleep(0.1)
    left = mounts_below(scratch)
    if left:
        print(f"still mounted, so {scratch} stays: {' '.join(map(str, left))}", file=sys.stderr)
    else:
        shutil.rmtree(scratch, ignore_errors=True)


def processes_about(directory):
    """Processes, other than this one, with a path below a directory on their command line."""
    found, needle = [], os.fsencode(directory)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def cpu_seconds(pids):
    """User and system time of processes that are still there."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory_mib(pids, field="VmRSS"):
    """Resident memory of processes. `Pss` counts shared pages once, `Private` leaves them out."""
    total = 0
    for pid in pids:
        name = "smaps_rollup" if field.startswith("P") else "status"
        try:
            lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith((f"{field}:", f"{field}_")))
    return total / 1024


def _version(*words):
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
    # Some say the versions of their libraries first, some how they are used.
    named = [line for line in lines if Path(words[0]).name.split("_")[0] in line and "version" in line]
    return next(iter(named or [line for line in lines if line]), None)


def describe(scratch, program):
    """What the figures were measured on."""
    processor = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]
    system = _version("stat", "-f", "-c", "%T", str(scratch))
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "processor": processor[0] if processor else platform.machine(),
        "memory_mib": int(memory) // 1024,
        "scratch_file_system": system,
        "envfs": _version(str(program), "--version"),
        "mksquashfs": _version("mksquashfs", "-version"),
        "squashfuse": _version("squashfuse_ll", "--version"),
        "fuse_overlayfs": _version("fuse-overlayfs", "--version"),
    }


def daemon_of(account, program, home, name):
    """Process id of the daemon of a mounted environment."""
    words = [program, "--home", home, "status", name, "--json"]
    pid = json.loads(account.run(*words, capture=True)).get("daemon_pid")
    return [pid] if pid else []
