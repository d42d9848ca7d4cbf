//! Environments made by each tool: imported in place, moved, upgraded, committed, and taken back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::packages::wheel;
use super::relocate::{containing, tools, tools_of};
use crate::support::tree;
use crate::support::{PATH, Run, TestEnv, has, run, skip};

/// A tool, as scripts. `$at` is the environment, `$tools` the `bin` of tools from PyPI.
struct Tool {
    /// The path of the environment in the working directory, and what envfs names it.
    at: &'static str,
    name: &'static str,
    /// Makes an environment without the package.
    make: &'static str,
    /// Installs version `$1` of the package, over another version if there is one.
    install: &'static str,
    /// Prints the version of the package, by a program that knows where it is.
    show: &'static str,
    /// How `envfs diff` begins after an upgrade.
    diff: &'static str,
}

/// Runs a script for a tool with an environment at a path.
fn script(env: &TestEnv, bin: &str, at: &Path, script: &str, version: &str) -> Run {
    let mut command = env.command("/bin/sh");
    command
        .args(["-ec", script, "sh", version])
        .env("at", at)
        .env("tools", bin)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .env("UV_LINK_MODE", "copy")
        .env("UV_CACHE_DIR", env.root().join("home/uv-cache"));
    run(command).ok()
}

/// Returns a digest of an environment, without the link counts of regular files: tools link files
/// to their caches, which are not part of an environment.
fn digest(env: &TestEnv, at: &Path) -> String {
    let digest = tree::digest(env, at);
    let lines = digest.lines().map(|line| {
        // Path, type, mode, owner, group, links, size, time, and no target.
        let mut fields: Vec<&str> = line.rsplitn(5, ' ').collect();
        if line.ends_with(' ')
            && let Some(links) = fields.get_mut(3)
        {
            *links = "*";
        }
        fields.reverse();
        fields.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Takes an environment through everything.
fn check(env: &TestEnv, bin: &str, tool: &Tool) {
    let name = tool.name;
    let at = env.work().join(tool.at);
    let run_at = |at: &Path, words: &str, version: &str| script(env, bin, at, words, version);
    let shown = |at: &Path| run_at(at, tool.show, "").line().to_owned();
    env.sh(&format!("mkdir -p '{}'", at.parent().unwrap().display()))
        .ok();
    run_at(&at, tool.make, "");
    run_at(&at, tool.install, "1.0.0");
    assert_eq!(shown(&at), "1.0.0", "{name}: made");

    let before = digest(env, &at);
    env.envfs(&["import", "--in-place", tool.at]).ok();
    assert_eq!(digest(env, &at), before, "{name}: imported in place");
    assert_eq!(shown(&at), "1.0.0", "{name}");
    env.envfs(&["import", "--finish", name]).ok();

    run_at(&at, tool.install, "2.0.0");
    assert_eq!(shown(&at), "2.0.0", "{name}: upgraded");
    let diff = env.envfs(&["diff", name]).ok();
    let first: Vec<&str> = diff
        .out
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(first.join(" "), tool.diff, "{name}: {diff}");
    env.envfs(&["commit", "-m", "two", name]).ok();
    assert_eq!(shown(&at), "2.0.0", "{name}: committed");
    let second = digest(env, &at);
    run_at(&at, tool.install, "1.0.0");
    assert_eq!(shown(&at), "1.0.0", "{name}: downgraded");
    env.envfs(&["discard", "-y", name]).ok();
    assert_eq!(digest(env, &at), second, "{name}: discarded");
    env.envfs(&["undo", name]).ok();
    assert_eq!(shown(&at), "1.0.0", "{name}: the discard was undone");
    env.envfs(&["undo", name]).ok();
    assert_eq!(digest(env, &at), second, "{name}: the undo was undone");
    env.envfs(&["rollback", name, "1"]).ok();
    assert_eq!(digest(env, &at), before, "{name}: rolled back");
    assert_eq!(shown(&at), "1.0.0", "{name}");
    env.envfs(&["undo", name]).ok();
    assert_eq!(digest(env, &at), second, "{name}: the rollback was undone");

    // To another directory, of which the parent has what the tool needs beside the environment.
    let moved = env.work().join("moved to").join(at.file_name().unwrap());
    env.sh(&format!(
        "mkdir 'moved to'; for file in '{}'/*.json; do [ ! -f \"$file\" ] || cp \"$file\" 'moved to'; done",
        at.parent().unwrap().display()
    ))
    .ok();
    env.envfs(&["unmount", name]).ok();
    env.envfs(&["relocate", name, moved.to_str().unwrap()]).ok();
    assert_eq!(env.mount(name), moved);
    assert_eq!(shown(&moved), "2.0.0", "{name}: moved");
    assert_eq!(containing(env, &moved, &at), [""; 0], "{name}");
    run_at(&moved, tool.install, "1.0.0");
    assert_eq!(shown(&moved), "1.0.0", "{name}: downgraded after the move");
    env.envfs(&["commit", "-m", "one", name]).ok();
    env.envfs(&["rollback", name]).ok();
    assert_eq!(shown(&moved), "2.0.0", "{name}: rolled back after the move");
    env.envfs(&["unmount", name]).ok();
    env.verify(name);
}

/// Makes the package `part` for Python.
fn wheels(env: &TestEnv) {
    env.sh("mkdir -p wheels").ok();
    for version in ["1.0.0", "2.0.0"] {
        wheel(env, "part", version, &["part.py"]);
    }
}

const PYTHON: Tool = Tool {
    at: "proj/.venv",
    name: "proj",
    make: "",
    install: "\"$at/bin/pip\" install -q --no-index --find-links wheels part==$1",
    show: "\"$at/bin/pip\" list --format freeze | sed -n 's/^part==//p'",
    diff: "upgraded part 1.0.0 → 2.0.0 (python)",
};

#[test]
fn environments_of_venv_are_moved_upgraded_and_taken_back() {
    if !has("python3") {
        return;
    }
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    wheels(&env);
    let make = "python3 -m venv \"$at\"";
    check(&env, "", &Tool { make, ..PYTHON });
}

#[test]
fn environments_of_virtualenv_are_moved_upgraded_and_taken_back() {
    let Some(tools) = tools() else { return };
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    wheels(&env);
    let make = "\"$tools/python\" -m virtualenv -q --no-download \"$at\"";
    check(&env, &tools_of(&env, &tools), &Tool { make, ..PYTHON });
}

#[test]
fn environments_of_uv_are_moved_upgraded_and_taken_back() {
    let Some(tools) = tools() else { return };
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    wheels(&env);
    let tool = Tool {
        make: "\"$tools/uv\" venv -q --offline --python $(command -v python3) \"$at\"",
        install: "\"$tools/uv\" pip install -q --offline --no-index --find-links wheels \
                  --python \"$at/bin/python\" part==$1",
        show: "\"$at/bin/python\" -c 'import importlib.metadata as m; print(m.version(\"part\"))'",
        ..PYTHON
    };
    check(&env, &tools_of(&env, &tools), &tool);
}

/// Makes the package `part` for Node.
fn archives(env: &TestEnv) {
    for version in ["1.0.0", "2.0.0"] {
        let dir = env.work().join(format!("part-{version}"));
        let package =
            format!(r#"{{"name": "part", "version": "{version}", "bin": {{"part": "x.js"}}}}"#);
        env.write(&dir.join("package.json"), package);
        let show = "#!/usr/bin/env node\nconsole.log(require('./package.json').version)\n";
        env.write(&dir.join("x.js"), show);
        env.sh(&format!(
            "chmod +x part-{version}/x.js; npm pack --silent ./part-{version}"
        ))
        .ok();
    }
}

const NODE: Tool = Tool {
    at: "app/node_modules",
    name: "app",
    make: "echo '{\"name\": \"app\", \"version\": \"1.0.0\", \"private\": true}' >app/package.json",
    install: "cd \"$at/..\"; npm --offline --no-audit --no-fund --silent install ../part-$1.tgz",
    show: "\"$at/.bin/part\"",
    diff: "upgraded part 1.0.0 → 2.0.0 (node)",
};

#[test]
fn environments_of_npm_are_moved_upgraded_and_taken_back() {
    if !has("node") || !has("npm") {
        return;
    }
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    archives(&env);
    check(&env, "", &NODE);
}

/// Returns the directory of the real pnpm, installed once, where the user of the test can read it.
fn pnpm(env: &TestEnv) -> Option<PathBuf> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(|e| e.into_inner());
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pnpm");
    let package = cache.join("node_modules/pnpm");
    if !package.join("bin/pnpm.cjs").exists() {
        fs::create_dir_all(&cache).unwrap();
        let mut command = Command::new("npm");
        command.args(["install", "--silent", "--prefix"]);
        // The last version for Node 18.
        command.arg(&cache).arg("pnpm@9").env("PATH", PATH);
        let installed = run(command);
        if installed.code != 0 {
            skip(&format!("cannot install pnpm: {installed}"));
            return None;
        }
    }
    let own = env.root().join("pnpm");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(&package).arg(&own);
    run(copy).ok();
    env.user().give_tree(&own);
    Some(own)
}

#[test]
fn environments_of_pnpm_are_moved_upgraded_and_taken_back() {
    if !has("node") || !has("npm") {
        return;
    }
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    let Some(pnpm) = pnpm(&env) else { return };
    archives(&env);
    // Hard links to its store, outside of the environment, could not be kept.
    let install = "cd \"$at/..\"; node \"$tools/bin/pnpm.cjs\" --offline --silent \
                   --package-import-method copy \
                   --store-dir \"$HOME/pnpm-store\" add ../part-$1.tgz";
    let tool = Tool {
        install,
        // pnpm keeps the files of the earlier version for a week.
        diff: "installed part 2.0.0 (node)",
        ..NODE
    };
    check(&env, pnpm.to_str().unwrap(), &tool);
}

const CONDA: Tool = Tool {
    at: "envs/science",
    name: "science",
    make: "",
    install: "\"$tools/python\" conda_package.py install channel cache \"$at\" pref=${1%.0.0}",
    // The program, not a script, says where the data is.
    show: "data=$(\"$at/bin/prefbin\"); sed -n 's/^version=//p' \"$data\"",
    diff: "upgraded pref 1 → 2 (conda)",
};

/// Makes a channel with two versions of a package. Returns the tools.
pub(super) fn channel(env: &TestEnv) -> Option<String> {
    let tools = tools()?;
    if !has("cc") {
        return None;
    }
    let bin = tools_of(env, &tools);
    let script = env.work().join("conda_package.py");
    env.write(&script, include_str!("conda_package.py"));
    env.sh(&format!("{bin}/python conda_package.py make channel"))
        .ok();
    Some(bin)
}

#[test]
fn environments_of_conda_are_moved_upgraded_and_taken_back() {
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    let Some(bin) = channel(&env) else { return };
    check(&env, &bin, &CONDA);
    // conda-pack packs what is mounted, and its own program moves that elsewhere.
    let at = env.mount("science");
    let pack = "\"$tools/conda-pack\" -q -p \"$at\" -o packed.tar.gz; mkdir unpacked; \
                tar -xzf packed.tar.gz -C unpacked; \"$tools/python\" unpacked/bin/conda-unpack";
    script(&env, &bin, &at, pack, "");
    let unpacked = env.work().join("unpacked");
    let shown = script(&env, &bin, &unpacked, CONDA.show, "");
    assert_eq!(shown.line(), "2.0.0");
    let program = env.sh("unpacked/bin/prefbin").ok();
    assert!(
        program.line().starts_with(unpacked.to_str().unwrap()),
        "{program}"
    );
}

#[test]
fn environments_of_conda_pack_are_moved_upgraded_and_taken_back() {
    let Some(env) = TestEnv::ordinary() else {
        return;
    };
    let Some(bin) = channel(&env) else { return };
    let make = "\"$tools/python\" conda_package.py install channel cache \"$PWD/made\" pref=1; \
                \"$tools/conda-pack\" -q -p \"$PWD/made\" -o packed.tar.gz; mkdir \"$at\"; \
                tar -xzf packed.tar.gz -C \"$at\"; \"$tools/python\" \"$at/bin/conda-unpack\"; rm -r made";
    let install = "[ -e \"$at/conda-meta/pref-${1%.0.0}-0.json\" ] || \
                   \"$tools/python\" conda_package.py install channel cache \"$at\" pref=${1%.0.0}";
    check(
        &env,
        &bin,
        &Tool {
            make,
            install,
            ..CONDA
        },
    );
}
