"""Makes a channel with one conda package, or installs it with py-rattler.

usage: conda_package.py make CHANNEL | conda_package.py install CHANNEL CACHE PREFIX
"""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

PLACEHOLDER = ("/opt/" + "placehold_" * 30)[:255]


def make(channel):
    from conda_package_handling import api

    root = channel.with_name("package")
    (root / "bin").mkdir(parents=True)
    (root / "share").mkdir()
    (root / "info").mkdir()
    source = root / "info/p.c"
    source.write_text('#include <stdio.h>\nconst char p[] = PREFIX "/share/data";\nint main() { puts(p); return 0; }\n')
    binary = str(root / "bin/prefbin")
    subprocess.check_call(["cc", "-o", binary, str(source), f'-DPREFIX="{PLACEHOLDER}"'])
    source.unlink()
    (root / "bin/prefsh").write_text(f"#!{PLACEHOLDER}/bin/wrap\n")
    (root / "bin/wrap").write_text(f'#!/bin/sh\necho wrap {PLACEHOLDER} "$@"\n')
    (root / "share/data").write_text(f"root={PLACEHOLDER}\n")
    (root / "share/plain").write_text("plain\n")
    paths = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        path.chmod(0o755 if path.parent.name == "bin" else 0o644)
        data = path.read_bytes()
        entry = {"_path": str(path.relative_to(root)), "path_type": "hardlink",
                 "sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
        if PLACEHOLDER.encode() in data:
            entry["prefix_placeholder"] = PLACEHOLDER
            entry["file_mode"] = "binary" if b"\0" in data else "text"
        paths.append(entry)
    index = {"name": "pref", "version": "1", "build": "0", "build_number": 0, "depends": [],
             "subdir": "linux-64", "arch": "x86_64", "platform": "linux"}
    (root / "info/index.json").write_text(json.dumps(index))
    (root / "info/paths.json").write_text(json.dumps({"paths": paths, "paths_version": 1}))
    (root / "info/files").write_text("".join(e["_path"] + "\n" for e in paths))
    (root / "info/about.json").write_text("{}")
    for subdir in ("linux-64", "noarch"):
        (channel / subdir).mkdir(parents=True)
    file = channel / "linux-64/pref-1-0.conda"
    api.create(str(root), None, file.name, str(file.parent))
    data = file.read_bytes()
    index |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    for subdir in ("linux-64", "noarch"):
        packages = {file.name: index} if subdir == "linux-64" else {}
        repodata = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages}
        (channel / subdir / "repodata.json").write_text(json.dumps(repodata))


async def install(channel, cache, prefix):
    from rattler import Gateway, install, solve

    gateway = Gateway(cache_dir=f"{cache}/repodata")
    records = await solve([channel.as_uri()], ["pref"], gateway=gateway, platforms=["linux-64", "noarch"])
    await install(records, target_prefix=prefix, cache_dir=f"{cache}/packages", show_progress=False)


channel = Path(sys.argv[2]).resolve()
if sys.argv[1] == "make":
    make(channel)
else:
    asyncio.run(install(channel, *sys.argv[3:]))
# Without the finalizers of py-rattler, which may crash.
os._exit(0)
