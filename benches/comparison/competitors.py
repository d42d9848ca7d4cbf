"""The ways to use one tree as a writable directory."""

import os
import shutil
from pathlib import Path

from . import host


class Competitor:
    """One way. `shell` runs a command in it, as whoever it is meant for."""

    name = title = ""
    #: Whether it has daemons that use time and memory of their own.
    has_daemons = False

    def __init__(self, scratch, image, account):
        self.dir = account.directory(scratch / self.name)
        self.image, self.account = image, account
        self.root = account.directory(self.dir / "merged")
        #: Where the image itself is mounted, by those who lay it under something.
        self.lower = account.directory(self.dir / "lower")

    def shell(self, command, **options):
        return self.account.shell(self.root, command, **options)

    def fresh(self):
        """Mounts without changes."""
        self.unmount()
        for part in ("upper", "work"):
            shutil.rmtree(self.dir / part, ignore_errors=True)
            self.account.directory(self.dir / part)
        self.mount()

    def repair(self, _made, _spoilt):
        """Takes back what a workload did."""
        self.fresh()

    def remount_cold(self):
        self.unmount()
        host.drop_caches()
        self.mount()

    def mount(self):
        self.mounter().run("sh", "-c", self.mount_command())

    def mounter(self):
        """Who mounts it."""
        return self.account

    def mount_command(self):
        raise NotImplementedError

    def unmount(self):
        raise NotImplementedError

    def daemons(self):
        return []


class Plain(Competitor):
    """The tree itself, copied to the scratch file system."""

    name, title = "plain", "plain directory"

    def __init__(self, scratch, image, account, tree):
        super().__init__(scratch, image, account)
        self.tree, self.is_there = tree, False

    def mount(self):
        pass

    def unmount(self):
        pass

    def fresh(self):
        if not self.is_there:
            self.root.rmdir()
            self.copy(".")
            self.is_there = True

    def repair(self, made, spoilt):
        # A copy of everything for each round would take longer than all that is measured.
        for path in (*made, *spoilt):
            host.Account().run("rm", "-rf", self.root / path)
        for path in spoilt:
            self.copy(path)

    def copy(self, path):
        host.Account().run("cp", "-a", self.tree / path, self.root / path)
        if self.account.is_other:
            host.Account().run("chown", "-hR", f"{self.account.uid}:{self.account.gid}", self.root / path)

    def remount_cold(self):
        host.drop_caches()


class Kernel(Competitor):
    """The image in the kernel's SquashFS, under the kernel's overlayfs. Root mounts it."""

    name, title = "kernel", "kernel squashfs + overlayfs"

    def mounter(self):
        return host.Account()

    def mount_command(self):
        options = f"lowerdir={self.lower},upperdir={self.dir}/upper,workdir={self.dir}/work"
        return f"mount -o loop,ro -t squashfs {self.image} {self.lower} && mount -t overlay overlay -o {options} {self.root}"

    def unmount(self):
        for point in (self.root, self.lower):
            if os.path.ismount(point):
                self.mounter().run("umount", point, check=False)


class Fuse(Competitor):
    """The image in squashfuse, under fuse-overlayfs."""

    name, title, has_daemons = "fuse", "squashfuse_ll + fuse-overlayfs", True

    @staticmethod
    def missing():
        return next((tool for tool in ("squashfuse_ll", "fuse-overlayfs") if not shutil.which(tool)), None)

    def mount_command(self):
        options = f"lowerdir={self.lower},upperdir={self.dir}/upper,workdir={self.dir}/work"
        return f"squashfuse_ll {self.image} {self.lower} && fuse-overlayfs -o {options} {self.root}"

    def unmount(self):
        for point in (self.root, self.lower):
            if point in host.mounts_below(self.dir):
                self.account.run("fusermount3", "-u", point, check=False)

    def daemons(self):
        return host.processes_about(self.dir)


class Envfs(Competitor):
    """This project, through an environment of a store of its own."""

    name, title, has_daemons = "envfs", "envfs", True

    def __init__(self, scratch, image, account, program, name="bench"):
        self.name = self.name if name == "bench" else name
        super().__init__(scratch, image, account)
        self.program, self.environment, self.home = program, name, self.dir / "home"
        self.call("import", image, name, "--prefix", self.root)

    def words(self, *words):
        return [self.program, "--home", self.home, *words]

    def call(self, *words, check=True):
        self.account.run(*self.words(*words), check=check)

    def mount_command(self):
        return f"{self.program} --home {self.home} mount {self.environment}"

    def unmount(self):
        self.call("unmount", self.environment, check=False)

    def fresh(self):
        self.unmount()
        self.call("discard", self.environment, "-y")
        self.call("gc", self.environment, "--keep", "1")
        self.mount()

    def daemons(self):
        return host.daemon_of(self.account, self.program, self.home, self.environment)


def make_image(tree, image, account):
    """An image as one would make it; for an ordinary user everything in it is his, as it would be if he
    had made it."""
    owner = [] if account.uid == 0 else ["-force-uid", account.uid, "-force-gid", account.gid]
    words = ["mksquashfs", tree, image, "-comp", "zstd", "-b", "128K", "-no-progress", "-quiet", *owner]
    host.Account().run(*words)


def expand_image(image, tree):
    host.Account().run("unsquashfs", "-quiet", "-no-progress", "-d", tree, Path(image))
