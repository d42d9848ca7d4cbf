"""Workloads on request: a million files, 200 environments at once, a large upper layer, a million changes."""

import io
import tarfile

from . import host, workloads
from .competitors import Envfs, Fuse, Kernel


def time_of(function):
    began = host.time.perf_counter()
    function()
    return host.time.perf_counter() - began


def million_tar(path, count):
    """An archive of `count` files of a few bytes, a thousand to a directory."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo()
        for number in range(count):
            if number % 1000 == 0:
                directory = tarfile.TarInfo(f"d{number // 32000}/e{number // 1000}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(directory)
            text = b"%d\n" % number
            member.name = f"d{number // 32000}/e{number // 1000}/f{number % 1000}.py"
            member.size, member.mode = len(text), 0o644
            archive.addfile(member, io.BytesIO(text))


def million(bench, count=1_000_000):
    """Mount to the first stat and to the end of find, where the image has a million files."""
    scratch, account, results = bench.scratch / "million", bench.account, bench.results
    account.directory(scratch)
    archive = scratch / "files.tar"
    million_tar(archive, count)
    ours = Envfs(scratch, archive, account, bench.program)
    archive.unlink()
    image = next((ours.home / "store" / ours.environment / "images").iterdir())
    some = [competitor(scratch, image, account) for competitor in (Kernel, Fuse) if competitor.name in bench.names]
    bench.competitors += [*some, ours]
    for competitor in some:
        competitor.fresh()
        competitor.unmount()
    path = f"d0/e{min(31, (count - 1) // 1000)}/f7.py"
    for _ in range(bench.rounds):
        for competitor in (*some, ours):
            command = f"{competitor.mount_command()} && stat -c %s '{competitor.root}/{path}'"
            taken = workloads.milliseconds(competitor.mounter(), "sh", "-c", command, before=competitor.unmount)
            results.add("million-mount", f"mount and first stat, {count} files", "ms", competitor.name, taken)
            if host.can_drop_caches():
                competitor.remount_cold()
                taken = time_of(lambda: competitor.shell(workloads.STAT_ALL))
                results.add("million-stat", f"stat of {count} files, cold", "s", competitor.name, taken)
                if competitor.has_daemons:
                    used = host.memory_mib(competitor.daemons())
                    results.add("million-memory", f"memory of the daemons, {count} files", "MiB", competitor.name, used)
            competitor.unmount()


def many(bench, count=200):
    """Memory of each of 200 mounts. All have the same image, each its own changes and its own daemon."""
    directory = bench.account.directory(bench.scratch / "many")
    points = []
    for number in range(count):
        upper, point = directory / f"u{number:04}", bench.account.directory(directory / f"m{number:04}")
        words = ["mount", "--image", bench.image, "--upper", upper, point]
        bench.account.run(bench.program, *words)
        points.append(point)
    for point in points:
        bench.account.shell(point, "find . -maxdepth 3 -printf %s; echo new > new")
    host.time.sleep(2)
    daemons = [pid for point in points for pid in host.processes_about(point)]
    used = host.cpu_seconds(daemons)
    host.time.sleep(10)
    used = (host.cpu_seconds(daemons) - used) * 1000
    bench.results.add("many-idle", f"processor time of {count} idle daemons in 10 s", "ms", "envfs", used)
    for point in points:
        pids = host.processes_about(point)
        private = host.memory_mib(pids, "Private")
        bench.results.add("many-private", f"memory of each of {count} daemons, private", "MiB", "envfs", private)
        bench.results.add("many-memory", f"memory of each of {count} daemons, RSS", "MiB", "envfs", host.memory_mib(pids))
        bench.results.add("many-pss", f"memory of each of {count} daemons, PSS", "MiB", "envfs", host.memory_mib(pids, "Pss"))
    for point in points:
        bench.account.run("fusermount3", "-u", point, check=False)


def upper(bench, entries=100_000, size=10_240):
    """Mount and find where the changes are 100,000 entries and 1 GB."""
    make = workloads.python(workloads.CREATE, "made", entries, size)
    for competitor in bench.mountable():
        competitor.fresh()
        competitor.shell(make)
    for _ in range(bench.rounds):
        for competitor in bench.mountable():
            command = f"{competitor.mount_command()} && stat -c %s '{competitor.root}/made'"
            competitor.unmount()
            taken = workloads.milliseconds(competitor.mounter(), "sh", "-c", command, before=competitor.unmount)
            bench.results.add("upper-mount", f"mount and first stat, {entries} changes", "ms", competitor.name, taken)
            if host.can_drop_caches():
                competitor.remount_cold()
                taken = time_of(lambda: competitor.shell(f"cd made && {workloads.STAT_ALL}"))
                bench.results.add("upper-stat", f"stat of {entries} changes, cold", "s", competitor.name, taken)
    for competitor in bench.mountable():
        competitor.fresh()


def changes(bench, count=1_000_000):
    """Mount, status and commit where a million files of 100 bytes were created."""
    ours = Envfs(bench.scratch, bench.image, bench.account, bench.program, "changes")
    bench.competitors.append(ours)
    ours.disk.inodes = count + 200_000
    ours.fresh("ext4")
    made = workloads.python(workloads.CREATE, "made", count, 100)

    def note(key, what, unit, figure):
        bench.results.add(f"changes-{key}", f"{what}, {count} changed files", unit, "envfs", figure)

    def memory():
        return host.memory_mib(ours.daemons())

    note("create", "create them", "s", time_of(lambda: ours.shell(made)))
    note("created", "memory of the daemon after creating them", "MiB", memory())
    ours.unmount()
    command = f"{ours.mount_command()} && stat -c %s '{ours.root}/made'"
    for _ in range(bench.rounds):
        taken = workloads.milliseconds(bench.account, "sh", "-c", command, before=ours.unmount, times=1)
        note("mount", "mount and first stat", "ms", taken)
    note("mounted", "memory of the daemon after the mount", "MiB", memory())
    note("status", "status", "s", time_of(lambda: ours.call("status", ours.environment)))
    note("commit", "commit", "s", time_of(lambda: ours.call("commit", ours.environment)))
    note("committed", "memory of the daemon after the commit", "MiB", memory())
    note("remount", "mount and first stat after the commit", "ms",
         workloads.milliseconds(bench.account, "sh", "-c", command, before=ours.unmount, times=1))
