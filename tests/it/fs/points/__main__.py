"""Exact points of what a file system must do, each a function with a name of its own.

    points NAME DIRECTORY [UPPER]

DIRECTORY holds the tree that points.rs makes. The same functions run on ext4, so what they say is
what a plain directory does; those marked `mount_only` tell of documented differences, and look
into UPPER, where a mount keeps what was copied up.
"""

import importlib
import os
import sys

from support import MOUNT_ONLY, POINTS

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
    for found in POINTS:
        print(found, "mount_only" if found in MOUNT_ONLY else "everywhere")
    sys.exit(0)
os.chdir(sys.argv[2])
POINTS[sys.argv[1]]()
