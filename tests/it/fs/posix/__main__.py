"""Checks of single file system properties, each a function named after the property.

    posix NAME DIRECTORY [UPPER]

DIRECTORY holds the tree that posix.rs creates. The functions also run on ext4, which proves that they
describe a plain directory; those marked `mount_only` check documented differences and inspect UPPER, the
upper directory of a mount.
"""

import importlib
import os
import sys

from support import MOUNT_ONLY, CHECKS

for topic in (
    "attributes",
    "content",
    "copy_up",
    "identity",
    "links",
    "listings",
    "locks",
    "names",
    "opened",
    "permissions",
    "watching",
):
    importlib.import_module(topic)

if sys.argv[1] == "--list":
    for found in CHECKS:
        print(found, "mount_only" if found in MOUNT_ONLY else "everywhere")
    sys.exit(0)
os.chdir(sys.argv[2])
CHECKS[sys.argv[1]]()
