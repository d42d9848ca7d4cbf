"""The ways to use one tree as a writable directory."""

import os
import shutil
from pathlib import Path

from . import host


class Competitor:
    """One way. `shell` runs a command in it, as the account it is mounted for."""

    name = title = ""
    #: Whether it has daemons that use time and memory of their own.
    has_daemons = False

    def __init__(self, scratch, image, account):
        self.dir = account.directory(scratch / self.name)
        self.image, self.account = image, account
        self.root = account.directory(self.dir / "merged")
        #: Where the image itself is mounted, for kernel SquashFS and squashfuse.
        self.lower = account.directory(self.dir / "lower")
        #: The file system of its own on which a workload makes its changes, if it has one now.
        self.disk = host.Disk(scratch / f"disk-{self.name}", account)
        #: Where a workload runs: `root`, but for a plain directory that needs no tree.
        self.place = self.root

    def shell(self, command, **options):
        return self.account.shell(self.place, command, **options)

    def storage(self):
        """The directory that holds the changes."""
        return self.disk.directory if self.disk.is_mounted else self.dir

    def fresh(self, disk=None, anywhere=False):
        """Mounts without changes; with `disk` ("ext4" or "tmpfs") they go to a new file system."""
        self.unmount()
        self.disk.unmount()
        if disk:
            self.disk.make(disk)
        for part in ("upper", "work"):
            shutil.rmtree(self.storage() / part, ignore_errors=True)
            self.account.directory(self.storage() / part)
        self.mount()

    def repair(self, _made, _spoilt):
        """Undoes what a workload did."""
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

    def fresh(self, disk=None, anywhere=False):
        if not self.is_there:
            self.root.rmdir()
            self.copy(".")
            self.is_there = True
        if disk and anywhere:
            self.disk.make(disk)
            self.place = self.account.directory(self.disk.directory / "work")

    def repair(self, made, spoilt):
        self.place = self.root
        self.disk.unmount()
        # Copying the whole tree for each round would take longer than everything that is measured.
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
        options = f"lowerdir={self.lower},upperdir={self.storage()}/upper,workdir={self.storage()}/work"
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
        options = f"lowerdir={self.lower},upperdir={self.storage()}/upper,workdir={self.storage()}/work"
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
        self.program, self.environment = program, name
        self.make()

    @property
    def home(self):
        return self.storage() / "home"

    def make(self):
        self.call("import", self.image, self.environment, "--prefix", self.root)

    def words(self, *words):
        return [self.program, "--home", self.home, *words]

    def call(self, *words, check=True):
        self.account.run(*self.words(*words), check=check)

    def mount_command(self):
        return f"{self.program} --home {self.home} mount {self.environment}"

    def unmount(self):
        self.call("unmount", self.environment, check=False)

    def fresh(self, disk=None, anywhere=False):
        self.unmount()
        self.disk.unmount()
        if disk:
            self.disk.make(disk)
            self.make()
        else:
            self.call("discard", self.environment, "-y")
            self.call("gc", self.environment, "--keep", "1")
        self.mount()

    def daemons(self):
        return host.daemon_of(self.account, self.program, self.home, self.environment)


def make_image(tree, image, account):
    """Makes the image with mksquashfs; for an ordinary user, that user owns everything in it."""
    owner = [] if account.uid == 0 else ["-force-uid", account.uid, "-force-gid", account.gid]
    words = ["mksquashfs", tree, image, "-comp", "zstd", "-b", "128K", "-no-progress", "-quiet", *owner]
    host.Account().run(*words)


def expand_image(image, tree):
    host.Account().run("unsquashfs", "-quiet", "-no-progress", "-d", tree, Path(image))
