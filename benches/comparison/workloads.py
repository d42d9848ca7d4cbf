"""The workloads, and the goals their figures are compared with."""

import base64
import hashlib
import io
import itertools
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field

from . import host

#: Set by `choose_python`: the interpreter that writes, reads at random and keeps a database.
PYTHON = sys.executable


@dataclass(frozen=True)
class Workload:
    """A command that runs in the directory of each competitor in turn."""

    key: str
    title: str
    #: A shell command, run in the directory; or a function of the competitor that returns a figure.
    what: object
    #: Shell command before it, whose time does not count.
    prepare: str = ""
    #: Unmounted, caches dropped and mounted anew before it.
    cold: bool = False
    #: Changes the tree: needs one without changes.
    fresh: bool = False
    #: The file system made for each round on which it makes its changes: "ext4", "tmpfs" or none.
    disk: str = "ext4"
    #: Does not need the tree: a plain directory on the same file system is empty.
    anywhere: bool = False
    #: Paths it makes and paths it spoils, which are repaired in a plain directory.
    makes: tuple = ()
    spoils: tuple = ()
    #: Only for these competitors.
    only: tuple = ()
    unit: str = "s"
    #: Takes long, and tells little that the others do not: not with --quick.
    long: bool = False


@dataclass(frozen=True)
class Bar:
    """What is aimed at: a ratio to a competitor, or a figure in the workload's unit (`than` is None)."""

    key: str
    limit: float
    than: str | None = "kernel"


BARS = [
    Bar("import-cold", 1.0), Bar("import-cold", 0.7, "fuse"), Bar("import-warm", 1.05, "plain"),
    Bar("find-cold", 1.0), Bar("find-warm", 1.3, "plain"),
    Bar("stat-cold", 1.0), Bar("stat-warm", 1.3, "plain"),
    Bar("read-1-cold", 1.0), Bar("read-2-cold", 0.7), Bar("read-1-warm", 1.2),
    Bar("random-cold", 1.0), Bar("sequential-cold", 1.0),
    Bar("create", 2.2), Bar("delete", 2.5), Bar("delete-package", 3), Bar("pip", 1.15),
    Bar("touch-package", 0.3), Bar("rename-directory", 0.03), Bar("write", 1.6), Bar("sqlite", 1.3),
    Bar("mount", 15, None), Bar("activate-mounted", 10, None), Bar("activate-unmounted", 40, None),
    Bar("hook", 5, None), Bar("memory", 64, None),
    Bar("million-mount", 15, None), Bar("many-private", 6, None), Bar("many-idle", 0, None),
    Bar("upper-mount", 40, None), Bar("changes-mount", 40, None),
]  # fmt: skip

STAT_ALL = "find . -printf '%s' > /dev/null"
TAR_ALL = "tar cf - . | cat > /dev/null"
READ_ALL = "find . -type f -print0 | xargs -0 -P{} -n64 cat > /dev/null"
CREATE = (
    "import os,sys\nd=sys.argv[1]\nos.makedirs(d)\n"
    "for i in range(int(sys.argv[2])):\n"
    "  s=f'{d}/{i//200}'\n  if i%200==0: os.mkdir(s)\n"
    "  open(f'{s}/f{i}','wb').write(b'x'*int(sys.argv[3]))"
)
RANDOM = (
    "import os,random,sys\nf=os.open(sys.argv[1],os.O_RDONLY);n=os.fstat(f).st_size\nr=random.Random(1)\n"
    "for _ in range(4000): os.pread(f,4096,r.randrange(0,max(n-4096,1)))"
)
SQLITE = (
    "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1]);c.execute('create table t(a)');c.commit()\n"
    "for i in range(200): c.execute('insert into t values(?)',(i,));c.commit()"
)
IMPORT = "LD_LIBRARY_PATH=lib bin/python3 -B -c 'import numpy, pandas, sklearn, matplotlib.pyplot'"


def choose_python(account):
    """Takes an interpreter that the account may execute: ours may lie in somebody's home."""
    global PYTHON
    for PYTHON in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            account.run(PYTHON, "-c", "import sqlite3")
            return
        except (host.Failed, OSError):
            continue
    raise host.Failed(f"there is no python3 with sqlite3 that {account.name} may execute")


def python(script, *arguments):
    return f'{PYTHON} -c "{script}" ' + " ".join(f"'{word}'" for word in arguments)


def package(tree):
    """The largest installed Python package, or the largest directory of the tree."""
    places = list(tree.glob("lib/python3*/site-packages/*/")) or [p for p in tree.iterdir() if p.is_dir()]
    return max(places, key=lambda place: sum(1 for _ in place.rglob("*"))).relative_to(tree)


def largest(tree):
    files = (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    return max(files, key=lambda path: path.stat().st_size).relative_to(tree)


def has_stack(tree):
    site = list(tree.glob("lib/python3*/site-packages"))
    names = ("numpy", "pandas", "sklearn", "matplotlib")
    return (tree / "bin/python3").exists() and any(all((s / name).is_dir() for name in names) for s in site)


def make_wheel(directory, modules=400):
    """A package of 400 modules of 8 KiB, as a wheel."""
    body = "".join(f"def function_{n}(a, b=None):\n    return [a, b, {n}]\n\n\n" for n in range(120))
    files = {f"envfs_bench/m{n}.py": body + f"NUMBER = {n}\n" for n in range(modules)}
    files["envfs_bench/__init__.py"] = ""
    info = "envfs_bench-1.0.dist-info"
    files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: envfs-bench\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: envfs\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

    def record(name, text):
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        return f"{name},sha256={digest},{len(text)}\n"

    files[f"{info}/RECORD"] = "".join(record(*item) for item in files.items()) + f"{info}/RECORD,,\n"
    wheel = directory / "envfs_bench-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def make_tar(path, count, size=2048):
    """An archive of small files, 200 to a directory."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            if number % 200 == 0:
                directory = tarfile.TarInfo(f"untarred/{number // 200}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(directory)
            member = tarfile.TarInfo(f"untarred/{number // 200}/f{number}")
            member.size, member.mode = size, 0o644
            archive.addfile(member, io.BytesIO(b"x" * size))
    return path


@dataclass(frozen=True)
class Materials:
    """What the workloads are made for and of."""

    tree: object
    scratch: object
    program: object
    files: int
    megabytes: int
    wheels: list = field(default_factory=list)


def milliseconds(account, *words, before=None, times=5):
    """The fastest of a few runs of a command. One process is started for it and none in between."""
    best = None
    for _ in range(times):
        if before:
            before()
        began = host.time.perf_counter()
        account.run(*words)
        taken = (host.time.perf_counter() - began) * 1000
        best = taken if best is None else min(best, taken)
    return best


def reading(m):
    """Workloads that change nothing."""
    big, everything = largest(m.tree), []
    everything += [Workload(f"find-{how}", f"find, {how}", "find . -name nowhere", prepare, how == "cold")
                   for how, prepare in (("cold", ""), ("warm", "find . -name nowhere"))]
    everything += [Workload(f"stat-{how}", f"stat of everything, {how}", STAT_ALL, prepare, how == "cold")
                   for how, prepare in (("cold", ""), ("warm", STAT_ALL))]
    everything += [Workload(f"tar-{how}", f"tar of everything, {how}", TAR_ALL, prepare, how == "cold", long=True)
                   for how, prepare in (("cold", ""), ("warm", TAR_ALL))]
    everything += [Workload(f"read-{n}-cold", f"read everything, {n} reader{'s'[:n > 1]}, cold", READ_ALL.format(n), cold=True, long=n == 8)
                   for n in (1, 2, 8)]
    everything.append(Workload("read-1-warm", "read everything, 1 reader, warm", READ_ALL.format(1), READ_ALL.format(1)))
    everything.append(Workload("sequential-cold", "large file, sequential, cold", f"cat '{big}' > /dev/null", cold=True))
    everything.append(Workload("random-cold", "large file, 4 KiB at random, cold", python(RANDOM, big), cold=True))
    if has_stack(m.tree):
        everything.append(Workload("import-cold", "import numpy pandas sklearn matplotlib, cold", IMPORT, cold=True))
        everything.append(Workload("import-warm", "import numpy pandas sklearn matplotlib, warm", IMPORT, IMPORT))
    return everything


def changing(m):
    """Workloads that change the tree."""
    p = package(m.tree)
    create = python(CREATE, "made", m.files, 2048)
    checkout = (
        f"{python(CREATE, 'checkout', m.files // 4, 2048)} && cd checkout && git init -q . "
        "&& git add . && git commit -qm all && git status -s"
    )
    tar = make_tar(m.scratch / "files.tar", m.files)
    new = {"fresh": True, "makes": ("made",), "anywhere": True}
    # Without a disk: latency alone.
    few, memory = python(CREATE, "made", m.files // 4, 2048), new | {"disk": "tmpfs"}
    yield Workload("git-warm", "git status in a checkout, warm", "cd checkout && git status -s", checkout, fresh=True, makes=("checkout",), anywhere=True)
    yield Workload("git-cold", "git status in a checkout, cold", "cd checkout && git status -s", checkout, cold=True, fresh=True, makes=("checkout",), anywhere=True, long=True)
    yield Workload("create", f"create {m.files} files", create, **new)
    yield Workload("delete", f"delete {m.files} new files", "rm -rf made", create, **new)
    yield Workload("create-tmpfs", f"create {m.files // 4} files, tmpfs", few, **memory)
    yield Workload("delete-tmpfs", f"delete {m.files // 4} new files, tmpfs", "rm -rf made", few, **memory)
    yield Workload("untar", f"untar {m.files} files", f"tar xf {tar}", fresh=True, makes=("untarred",), anywhere=True)
    yield Workload("delete-package", "delete a lower package", f"rm -rf '{p}'", fresh=True, spoils=(p,))
    yield Workload("touch-package", "touch a lower package", f"find '{p}' -exec touch {{}} +", fresh=True, spoils=(p,))
    yield Workload("rename-directory", "rename a lower directory", f"mv '{p}' '{p}-moved'", fresh=True, makes=(f"{p}-moved",), spoils=(p,))
    site = next(m.tree.glob("lib/python3*/site-packages"), None)
    if site and (m.tree / "bin/python3").exists() and (site / "pip").is_dir():
        wheels = m.wheels or [make_wheel(m.scratch)]
        words = " ".join(f"'{wheel}'" for wheel in wheels)
        pip = "LD_LIBRARY_PATH=lib bin/python3 -m pip install -q --no-deps --no-index --no-cache-dir --force-reinstall"
        command = f"{pip} --disable-pip-version-check --no-warn-script-location {words}"
        # Whatever else a wheel brings is known only to pip: then the whole of site-packages is put back.
        how = {"spoils": (site.relative_to(m.tree), "bin")} if m.wheels else {
            "makes": tuple(f"{site.relative_to(m.tree)}/envfs_bench{end}" for end in ("", "-1.0.dist-info"))}
        yield Workload("pip", "pip install of a wheel", command, "LD_LIBRARY_PATH=lib bin/python3 -m pip --version", fresh=True, **how)
    yield Workload("write", f"write {m.megabytes} MB and fsync", f"dd if=/dev/zero of=made bs=1M count={m.megabytes} conv=fsync", **new)
    yield Workload("sqlite", "sqlite, 200 transactions", python(SQLITE, "made.db"), fresh=True, makes=("made.db",), anywhere=True)


def commanding(m, commits):
    """The time of commands, and what daemons keep. `commits()` is an environment of its own to commit to."""
    some = next(path for path in sorted(m.tree.iterdir())).name

    def mount(competitor):
        competitor.unmount()
        who = competitor.mounter()
        command = f"{competitor.mount_command()} && stat -c %s '{competitor.root}/{some}'"
        return milliseconds(who, "sh", "-c", command, before=competitor.unmount)

    def command(*words, before=lambda x: None):
        def timed(x):
            return milliseconds(x.account, *x.words(*words), before=lambda: before(x))
        return timed

    def memory(competitor):
        competitor.unmount()
        competitor.mount()
        competitor.shell(READ_ALL.format(1))
        # What is given back when nothing happens any more is not held idle.
        host.time.sleep(2)
        return host.memory_mib(competitor.daemons())

    turns = itertools.count()

    def commit(prepare):
        def timed(_):
            x = commits()
            x.fresh()
            if prepare:
                # What an earlier round made has been committed.
                x.shell(prepare.replace("made", f"made-{next(turns)}"))
            return milliseconds(x.account, *x.words("commit", x.environment), times=1)
        return timed

    ours, ms = ("envfs",), {"unit": "ms"}
    yield Workload("mount", "mount and first stat", mount, only=("kernel", "fuse", "envfs"), **ms)
    yield Workload("activate-mounted", "activate, mounted", command("activate", "--shell", "bash", "bench"), only=ours, **ms)
    yield Workload("activate-unmounted", "activate, not mounted",
                   command("activate", "--shell", "bash", "bench", before=lambda x: x.unmount()), only=ours, **ms)
    yield Workload("hook", "hook", command("hook", "bash"), only=ours, **ms)
    yield Workload("commit-nothing", "commit of nothing", commit(""), only=ours, **ms)
    yield Workload("commit-10", "commit of 10 MB in 500 files", commit(python(CREATE, "made", 500, 20000)), only=ours, **ms)
    yield Workload("memory", "memory of the daemons after reading everything", memory, only=("fuse", "envfs"), unit="MiB")
