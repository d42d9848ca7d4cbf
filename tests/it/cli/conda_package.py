"""Makes a channel with two versions of a conda package, or installs one with py-rattler.

usage: conda_package.py make CHANNEL | conda_package.py install CHANNEL CACHE PREFIX [SPEC]
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
    for subdir in ("linux-64", "noarch"):
        (channel / subdir).mkdir(parents=True)
    packages = dict(package(channel, version) for version in ("1", "2"))
    for subdir in ("linux-64", "noarch"):
        found = packages if subdir == "linux-64" else {}
        repodata = {"info": {"subdir": subdir}, "packages": {}, "packages.conda": found}
        (channel / subdir / "repodata.json").write_text(json.dumps(repodata))


def package(channel, version):
    from conda_package_handling import api

    root = channel.with_name(f"package-{version}")
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
    (root / "share/data").write_text(f"root={PLACEHOLDER}\nversion={version}.0.0\n")
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
    index = {"name": "pref", "version": version, "build": "0", "build_number": 0, "depends": [],
             "subdir": "linux-64", "arch": "x86_64", "platform": "linux"}
    (root / "info/index.json").write_text(json.dumps(index))
    (root / "info/paths.json").write_text(json.dumps({"paths": paths, "paths_version": 1}))
    (root / "info/files").write_text("".join(e["_path"] + "\n" for e in paths))
    (root / "info/about.json").write_text("{}")
    file = channel / f"linux-64/pref-{version}-0.conda"
    api.create(str(root), None, file.name, str(file.parent))
    data = file.read_bytes()
    return file.name, index | {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


async def install(channel, cache, prefix, spec="pref=1"):
    from rattler import Gateway, install, solve

    gateway = Gateway(cache_dir=f"{cache}/repodata")
    records = await solve([channel.as_uri()], [spec], gateway=gateway, platforms=["linux-64", "noarch"])
    await install(records, target_prefix=prefix, cache_dir=f"{cache}/packages", show_progress=False)


channel = Path(sys.argv[2]).resolve()
if sys.argv[1] == "make":
    make(channel)
else:
    asyncio.run(install(channel, *sys.argv[3:]))
# Without the finalizers of py-rattler, which may crash.
os._exit(0)
