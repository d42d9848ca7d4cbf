#!/usr/bin/env python3
"""What conda's activator does, for tests where conda is absent.

conda.py shell.posix|shell.fish hook|activate [--stack] PREFIX|deactivate|reactivate

Follows conda's activator: CONDA_PREFIX, CONDA_SHLVL, CONDA_DEFAULT_ENV, CONDA_PROMPT_MODIFIER,
CONDA_PREFIX_n, CONDA_STACKED_n, __CONDA_SHLVL_n_NAME, activate.d in order, deactivate.d reversed. A
POSIX shell never unsets variables but empties them.
"""

import glob
import json
import os
import sys


class Shell:
    def __init__(self, kind):
        self.fish = kind == "shell.fish"
        self.out = []

    def quote(self, value):
        if self.fish:
            return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        return "'" + value.replace("'", "'\"'\"'") + "'"

    def export(self, name, value):
        self.out.append(f"set -gx {name} {self.quote(value)}" if self.fish else f"export {name}={self.quote(value)}")

    def unset(self, name):
        self.out.append(f"set -e {name} || true" if self.fish else f"export {name}=''")

    def source(self, prefix, directory):
        found = sorted(glob.glob(f"{prefix}/etc/conda/{directory}/*.{'fish' if self.fish else 'sh'}"))
        if directory == "deactivate.d":
            found.reverse()
        self.out += [("source " if self.fish else ". ") + self.quote(path) for path in found]

    def prompt(self, modifier):
        prompt = os.environ.get("PS1", "")
        if self.fish or not changes_prompt():
            return
        old = os.environ.get("CONDA_PROMPT_MODIFIER")
        prompt = prompt.replace(old, "") if old else prompt
        self.out.append(f"PS1={self.quote(modifier + prompt)}")


def changes_prompt():
    return os.environ.get("CONDA_CHANGEPS1", "true") != "false"


def name_of(prefix):
    is_named = os.path.basename(os.path.dirname(prefix)) == "envs"
    return os.path.basename(prefix) if is_named else prefix


def modifier_of(prefix):
    return f"({name_of(prefix)}) " if changes_prompt() else ""


def variables_of(prefix):
    found = {}
    for path in sorted(glob.glob(f"{prefix}/etc/conda/env_vars.d/*")):
        found.update(json.load(open(path)))
    state = f"{prefix}/conda-meta/state"
    if os.path.exists(state):
        found.update(json.load(open(state)).get("env_vars", {}))
    return found


def replaced(path, old, new):
    entries = path.split(":")
    here = f"{old}/bin"
    at = entries.index(here) if here in entries else 0
    if here in entries:
        entries.remove(here)
    if new:
        entries.insert(at, f"{new}/bin")
    return ":".join(entries)


def top(shell, prefix, level):
    modifier = modifier_of(prefix)
    for name, value in [
        ("CONDA_PREFIX", prefix),
        ("CONDA_SHLVL", str(level)),
        ("CONDA_DEFAULT_ENV", name_of(prefix)),
        ("CONDA_PROMPT_MODIFIER", modifier),
    ]:
        shell.export(name, value)
    return modifier


def activate(shell, prefix, is_stacked):
    env = os.environ
    level, old = int(env.get("CONDA_SHLVL") or 0), env.get("CONDA_PREFIX", "")
    if level and old == prefix:
        return reactivate(shell)
    path = env["PATH"]
    if level and not is_stacked:
        shell.source(old, "deactivate.d")
        path = replaced(path, old, prefix)
    else:
        path = f"{prefix}/bin:{path}"
    shell.prompt(modifier_of(prefix))
    shell.export("PATH", path)
    top(shell, prefix, level + 1)
    for name, value in variables_of(prefix).items():
        if value != "***unset***":
            shell.export(name, value)
            if name in env:
                shell.export(f"__CONDA_SHLVL_{level}_{name}", env[name])
    if level:
        shell.export(f"CONDA_PREFIX_{level}", old)
        if is_stacked:
            shell.export(f"CONDA_STACKED_{level + 1}", "true")
    shell.source(prefix, "activate.d")


def deactivate(shell):
    env = os.environ
    level, old = int(env.get("CONDA_SHLVL") or 0), env.get("CONDA_PREFIX", "")
    if not level or not old:
        return
    below = level - 1
    new = env[f"CONDA_PREFIX_{below}"] if below else None
    is_stacked = f"CONDA_STACKED_{level}" in env
    path = replaced(env["PATH"], old, None if is_stacked else new)
    shell.export("PATH", path)
    shell.source(old, "deactivate.d")
    if below:
        shell.unset(f"CONDA_PREFIX_{below}")
        if is_stacked:
            shell.unset(f"CONDA_STACKED_{level}")
    else:
        for name in ["CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_PROMPT_MODIFIER"]:
            shell.unset(name)
    restored = {name: env.get(f"__CONDA_SHLVL_{below}_{name}") for name in variables_of(old)}
    for name in [name for name, value in restored.items() if not value]:
        shell.unset(name)
    shell.prompt(modifier_of(new) if below else "")
    if below:
        top(shell, new, below)
        for name, value in variables_of(new).items():
            shell.export(name, value)
    else:
        shell.export("CONDA_SHLVL", "0")
    for name, value in restored.items():
        if value:
            shell.export(name, value)
    if below:
        shell.source(new, "activate.d")


def reactivate(shell):
    prefix = os.environ.get("CONDA_PREFIX")
    if not prefix or not int(os.environ.get("CONDA_SHLVL") or 0):
        return
    shell.source(prefix, "deactivate.d")
    shell.prompt(modifier_of(prefix))
    shell.export("PATH", replaced(os.environ["PATH"], prefix, prefix))
    shell.export("CONDA_PROMPT_MODIFIER", modifier_of(prefix))
    shell.source(prefix, "activate.d")


def hook(shell):
    own = os.path.abspath(__file__)
    shell.export("CONDA_EXE", own)
    if shell.fish:
        shell.out.append(
            "set -q CONDA_SHLVL; or set -gx CONDA_SHLVL 0\n"
            "function conda\n  eval ($CONDA_EXE shell.fish $argv | string collect)\nend"
        )
    else:
        shell.out.append(
            '[ -n "${CONDA_SHLVL+x}" ] || export CONDA_SHLVL=0\n[ -n "${PS1+x}" ] || PS1=\n'
            "conda() {\n  local ask\n"
            '  ask="$(PS1="$PS1" "$CONDA_EXE" shell.posix "$@")" || return\n  eval "$ask"\n}'
        )


def main():
    shell, command, words = Shell(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if command == "activate":
        activate(shell, words[-1], "--stack" in words)
    else:
        {"deactivate": deactivate, "reactivate": reactivate, "hook": hook}[command](shell)
    print(*shell.out, sep="\n")


main()
