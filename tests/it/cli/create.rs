//! `envfs create NAME -- CMD`, and the installers that it knows.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;

use super::venv::wheels;
use crate::support::{
    PATH, Run, TestEnv, finish, has, mounts_below, run, skip, skip_allowed, wait_for,
};

#[test]
fn create_rejects_exclude_with_a_command() {
    let Some(env) = TestEnv::new() else { return };
    let words = ["create", "e", "--exclude", "*.pyc", "--", "true"];
    env.envfs(&words).fails(2, &["--exclude"]);
    assert!(!env.home_of("e").exists());
}

#[test]
fn create_and_import_warn_about_spaces_in_the_prefix() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("first");
    let prefix = env.work().join("a prefix");
    let prefix = prefix.to_str().unwrap();
    let made = env.envfs(&["create", "e", "--prefix", prefix]).ok();
    assert!(made.err.contains("contains a space"), "{made}");
    env.envfs(&["remove", "-y", "e"]).ok();
    let source = source.to_str().unwrap();
    let made = env.envfs(&["import", source, "e", "--prefix", prefix]).ok();
    assert!(made.err.contains("contains a space"), "{made}");
}

#[test]
fn failed_commit_after_create_keeps_the_installed_files() {
    let Some(env) = TestEnv::new() else { return };
    let words = ["create", "e", "--", "sh", "-c", "echo x >{prefix}/x"];
    env.envfs_with("ENVFS_FAULT", "commit.written", &words)
        .fails(9, &["envfs commit e"]);
    env.envfs(&["commit", "e"]).ok();
    assert_eq!(fs::read(env.mount("e").join("x")).unwrap(), b"x\n");
    assert_eq!(env.count(&["log", "e"]), 2);
}

/// Creates an environment with a script and sends Ctrl-C once the script has created `began`.
fn interrupted(env: &TestEnv, script: &str) -> Run {
    let create = env.envfs_command(&["create", "e", "--", "sh", "-c", script]);
    // A shell that runs the tests in the background may have set SIGINT to be ignored.
    let mut command = env.command("env");
    command
        .arg("--default-signal=INT")
        .arg(create.get_program())
        .args(create.get_args())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn().unwrap();
    let group = Pid::from_raw(child.id().try_into().unwrap());
    let began = env.prefix("e").join("began");
    wait_for("the command", || began.exists());
    killpg(group, Signal::SIGINT).unwrap();
    finish(child, script.to_owned())
}

#[test]
fn ctrl_c_during_create_removes_the_environment() {
    for (script, code) in [
        // Killed by the signal, as most programs.
        ("touch {prefix}/began; exec sleep 60", 130),
        // Handles the signal and fails, as installers do.
        (
            "trap 'exit 7' INT; touch {prefix}/began; while :; do sleep 0.1; done",
            1,
        ),
        // Leaves a child that holds a file of the mount a little longer.
        (
            "sleep 1 >{prefix}/held & touch {prefix}/began; exec sleep 60",
            130,
        ),
    ] {
        let Some(env) = TestEnv::new() else { return };
        env.envfs(&["create", "first"]).ok();
        let before = env.store_listing();
        interrupted(&env, script).fails(code, &["--keep"]);
        assert_eq!(env.store_listing(), before, "{script}");
        assert_eq!(mounts_below(env.root()).len(), 0, "{script}");
    }
}

#[test]
fn create_commits_if_the_command_handles_ctrl_c() {
    let Some(env) = TestEnv::new() else { return };
    let script = "trap 'touch {prefix}/interrupted' INT; touch {prefix}/began
                  while [ ! -e {prefix}/interrupted ]; do sleep 0.1; done; echo x >{prefix}/x";
    interrupted(&env, script).ok();
    assert_eq!(env.count(&["log", "e"]), 1);
}

/// Returns the revisions of an environment.
fn log(env: &TestEnv, name: &str) -> Vec<Value> {
    let log = env.envfs(&["log", "--json", name]).ok().json();
    log.as_array().unwrap().clone()
}

/// Asserts that the only revision is number 1, with these words in its message, and that it has
/// the only image.
#[track_caller]
fn assert_first(env: &TestEnv, name: &str, words: &[&str]) {
    let log = log(env, name);
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(log[0]["revision"], 1, "{log:?}");
    let message = log[0]["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "no {word} in {message}");
    }
    let images = fs::read_dir(env.home_of(name).join("images")).unwrap();
    assert_eq!(images.count(), 1);
    let status = env.envfs(&["status", "--json", name]).ok().json();
    assert_eq!(status["changes"]["added"]["entries"], 0, "{status}");
    env.verify(name);
}

#[test]
fn first_revision_has_the_files_of_the_command() {
    for env in TestEnv::of_all_users() {
        let made = env.envfs(&["create", "e", "--", "sh", "-c", "echo x >{prefix}/x"]);
        assert!(
            made.ok()
                .err
                .contains("revision 1, image 4.00 KiB; 1 added")
        );
        let prefix = env.prefix("e");
        assert_first(&env, "e", &["sh -c ", prefix.to_str().unwrap()]);
        env.sh(&format!("echo y >{}/y", env.mount("e").display()))
            .ok();
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["rollback", "-q", "e", "1"]).ok();
        assert_eq!(env.sh(&format!("ls {}", prefix.display())).ok().out, "x\n");
    }
}

#[test]
fn crash_at_any_step_of_the_first_commit_leaves_one_or_both_revisions() {
    for (fault, published) in [
        ("commit.rotated", false),
        ("commit.named", false),
        ("commit.checked", false),
        ("commit.flipped", true),
        ("commit.cleaned", true),
    ] {
        let Some(env) = TestEnv::new() else { return };
        let words = ["create", "e", "--", "sh", "-c", "echo x >{prefix}/x"];
        env.envfs_with("ENVFS_FAULT", fault, &words).fails(9, &[]);
        env.envfs(&["commit", "-q", "e"]).ok();
        assert_eq!(
            log(&env, "e").len(),
            if published { 1 } else { 2 },
            "{fault}"
        );
        assert_eq!(fs::read(env.mount("e").join("x")).unwrap(), b"x\n");
        let images = fs::read_dir(env.home_of("e").join("images")).unwrap();
        assert_eq!(images.count(), log(&env, "e").len(), "{fault}");
        env.verify("e");
    }
}

#[test]
fn venv_installs_packages_with_pip() {
    let Some(wheels) = wheels() else { return };
    for env in TestEnv::of_all_users() {
        let wheels = copied(&env, &wheels);
        let links = format!("--find-links={wheels}");
        let words = ["create", "-q", "v", "--venv", "--no-index", &links, "six"];
        env.envfs(&words).ok();
        assert_first(
            &env,
            "v",
            &[
                "python3 -m venv ",
                "/bin/python -m pip install --no-index ",
                " six",
            ],
        );
        env.envfs(&["run", "v", "--", "python", "-c", "import six"])
            .ok();
        let file = env.work().join("requirements.txt");
        env.write(&file, format!("--no-index\n{links}\nidna\n"));
        env.envfs(&["create", "-q", "r", "--file", "requirements.txt"])
            .ok();
        assert_first(&env, "r", &["pip install -r ", "requirements.txt"]);
        env.envfs(&["run", "r", "--", "python", "-c", "import idna"])
            .ok();
        env.envfs(&["create", "-q", "empty", "--venv"]).ok();
        assert_first(&env, "empty", &["python3 -m venv "]);
    }
}

#[test]
fn uv_installs_packages_and_what_its_lock_file_lists() {
    let Some(wheels) = wheels() else { return };
    for env in TestEnv::of_all_users() {
        let Some(path) = uv(&env) else { return };
        let wheels = copied(&env, &wheels);
        let with_uv = |words: &[&str]| env.envfs_with("PATH", &path, words);
        let links = format!("--find-links={wheels}");
        let words = ["create", "-q", "u", "--uv", "--no-index", &links, "six"];
        with_uv(&words).ok();
        assert_first(
            &env,
            "u",
            &["uv venv ", " && env UV_LINK_MODE=copy uv pip install "],
        );
        with_uv(&["run", "u", "--", "python", "-c", "import six"]).ok();
        let project = env.work().join("project");
        env.write(
            &project.join("pyproject.toml"),
            format!(
                "[project]\nname = \"p\"\nversion = \"1\"\nrequires-python = \">=3.9\"\n\
                 dependencies = [\"idna\"]\n[tool.uv]\nno-index = true\nfind-links = [\"{wheels}\"]\n"
            ),
        );
        env.sh(&format!("cd project && PATH='{path}' uv lock -q"))
            .ok();
        with_uv(&["create", "-q", "l", "--file", "project/uv.lock"]).ok();
        assert_first(
            &env,
            "l",
            &["UV_PROJECT_ENVIRONMENT=", " uv sync --frozen --project "],
        );
        with_uv(&["run", "l", "--", "python", "-c", "import idna"]).ok();
    }
}

#[test]
fn npm_installs_packages_and_what_its_lock_file_lists() {
    if !has("npm") {
        return;
    }
    for env in TestEnv::of_all_users() {
        let package = env.work().join("greet");
        env.write(
            &package.join("package.json"),
            r#"{"name": "greet", "version": "1.0.0", "bin": {"greet": "greet.js"}}"#,
        );
        let script = "#!/usr/bin/env node\nconsole.log('hello')\n";
        env.write(&package.join("greet.js"), script);
        env.sh("cd greet && chmod +x greet.js && npm pack --silent")
            .ok();
        let archive = env.work().join("greet/greet-1.0.0.tgz");
        let archive = archive.to_str().unwrap();
        env.envfs(&["create", "-q", "n", "--npm", "--offline", archive])
            .ok();
        assert_first(&env, "n", &["npm install --prefix ", " --offline "]);
        let run = |name: &str| env.envfs(&["run", name, "--", "greet"]).ok().out;
        assert_eq!(run("n"), "hello\n");
        // Elsewhere, the lock file would name the archive by a relative path.
        let project = env.prefix("n");
        let lock = project.join("package-lock.json");
        env.envfs(&["create", "-q", "l", "--file", lock.to_str().unwrap()])
            .ok();
        assert_first(&env, "l", &["cp -- ", "npm ci --prefix "]);
        assert_eq!(run("l"), "hello\n");
    }
}

/// A stand-in for conda or micromamba: makes what they make, of packages that exist nowhere. Notes
/// its arguments.
const CONDA: &str = r#"#!/bin/sh -e
echo "$(basename "$0") $*" >>"$CALLS"
while [ "$1" != -p ]; do shift; done
prefix=$2; shift 2
case $(basename "$0") in
conda) [ ! -e "$prefix/conda-meta" ] || { echo "prefix exists" >&2; exit 1; } ;;
*) [ -e "$prefix/conda-meta/history" ] || { echo "Non-conda folder exists at prefix" >&2; exit 1; } ;;
esac
[ "$1" != -f ] || { grep -q 'name:' "$2"; shift 2; set -- from-file; }
mkdir -p "$prefix/conda-meta" "$prefix/bin"
echo "==> cmd: $*" >>"$prefix/conda-meta/history"
for package; do
  echo '{}' >"$prefix/conda-meta/$package-1-0.json"
done
"#;

#[test]
fn conda_or_what_is_there_instead_gets_the_arguments_as_they_are() {
    for (tool, packages, file) in [
        (
            "conda",
            "create -y -p PREFIX a b=1 -c here",
            "env create -p PREFIX -f FILE",
        ),
        (
            "mamba",
            "install -y -p PREFIX a b=1 -c here",
            "env update -p PREFIX -f FILE",
        ),
        (
            "micromamba",
            "install -y -p PREFIX a b=1 -c here",
            "install -y -p PREFIX -f FILE",
        ),
    ] {
        let Some(env) = TestEnv::new() else { return };
        let bin = env.root().join("tools");
        env.write(&bin.join(tool), CONDA);
        env.sh(&format!("chmod 755 '{}'", bin.join(tool).display()))
            .ok();
        let path = format!("{}:{PATH}", bin.display());
        let calls = env.work().join("calls");
        let create = |words: &[&str]| {
            let mut command = env.envfs_command(&[&["create", "-q"], words].concat());
            command.env("PATH", &path).env("CALLS", &calls);
            run(command)
        };
        create(&["c", "--conda", "a", "b=1", "-c", "here"]).ok();
        assert_first(&env, "c", &[tool, "a b=1 -c here"]);
        let file_path = env.work().join("environment.yml");
        env.write(&file_path, "name: x\n");
        create(&["f", "--file", "environment.yml"]).ok();
        assert_first(&env, "f", &[tool, "environment.yml"]);
        let said = fs::read_to_string(&calls).unwrap();
        let expected = [("c", packages), ("f", file)].map(|(name, words)| {
            let prefix = env.prefix(name);
            let words = words.replace("PREFIX", prefix.to_str().unwrap());
            format!(
                "{tool} {}\n",
                words.replace("FILE", file_path.to_str().unwrap())
            )
        });
        assert_eq!(said, expected.concat());
        assert!(env.mount("c").join("conda-meta/b=1-1-0.json").exists());
    }
}

#[test]
fn a_real_conda_installs_packages_and_what_a_file_lists() {
    let Some(conda) = std::env::var_os("ENVFS_TEST_CONDA").map(PathBuf::from) else {
        skip_allowed("ENVFS_TEST_CONDA is not set");
        return;
    };
    for env in TestEnv::of_all_users() {
        if env.command(&conda).arg("--version").output().is_err() {
            skip_allowed("this user cannot run the conda in ENVFS_TEST_CONDA");
            continue;
        }
        let Some(_) = super::tools::channel(&env) else {
            return;
        };
        let channel = format!("file://{}", env.work().join("channel").display());
        let path = format!("{}:{PATH}", conda.parent().unwrap().display());
        let with_conda = |words: &[&str]| {
            let mut command = env.envfs_command(words);
            // The solver that needs no further package.
            command.env("PATH", &path).env("CONDA_SOLVER", "classic");
            run(command)
        };
        let condarc = env.root().join("home/.condarc");
        env.write(
            &condarc,
            "default_channels: []\nnotices: false\nnumber_channel_notices: 0\n",
        );
        with_conda(&[
            "create",
            "-q",
            "c",
            "--conda",
            "pref=1",
            "-c",
            &channel,
            "--override-channels",
        ])
        .ok();
        assert_first(&env, "c", &["conda create -y -p ", " pref=1 -c "]);
        let shown = |name: &str| {
            let prefix = env.prefix(name);
            let program = env.envfs(&["run", name, "--", "prefbin"]).ok();
            assert_eq!(program.line(), prefix.join("share/data").to_str().unwrap());
            env.sh(&format!(
                "sed -n 's/^version=//p' '{}/share/data'",
                prefix.display()
            ))
            .ok()
            .line()
            .to_owned()
        };
        assert_eq!(shown("c"), "1.0.0");
        let file = format!("name: x\nchannels: [{channel:?}]\ndependencies: [pref=2]\n");
        env.write(&env.work().join("environment.yml"), file);
        with_conda(&["create", "-q", "f", "--file", "environment.yml"]).ok();
        assert_first(&env, "f", &["conda env create -p ", "environment.yml"]);
        assert_eq!(shown("f"), "2.0.0");
        // It goes on in what it made.
        let prefix = env.prefix("c");
        let words = [
            "install",
            "-y",
            "-q",
            "-p",
            prefix.to_str().unwrap(),
            "pref=2",
            "-c",
            &channel,
            "--override-channels",
        ];
        let mut install = env.command(&conda);
        install.args(words).env("CONDA_SOLVER", "classic");
        run(install).ok();
        let diff = env.envfs(&["diff", "c"]).ok();
        assert!(
            diff.out.starts_with("upgraded    pref 1 → 2 (conda)"),
            "{diff}"
        );
        env.envfs(&["discard", "-y", "c"]).ok();
        assert_eq!(shown("c"), "1.0.0");
    }
}

#[test]
fn missing_installer_or_file_is_an_error_and_makes_nothing() {
    let Some(env) = TestEnv::new() else { return };
    let nothing = env.work();
    let path = nothing.to_str().unwrap();
    for file in [
        "environment.yml",
        "requirements.txt",
        "uv.lock",
        "package-lock.json",
        "x.odd",
    ] {
        env.write(&env.work().join(file), "");
    }
    for (words, code, expected) in [
        (
            &["--conda", "x"][..],
            3,
            ["conda, mamba and micromamba", "micromamba"],
        ),
        (&["--venv"], 3, ["python3 is not in PATH", "python3-venv"]),
        (&["--uv", "x"], 3, ["uv is not in PATH", "pip install uv"]),
        (&["--npm"], 3, ["npm is not in PATH", "Node.js"]),
        (&["--file", "environment.yml"], 3, ["micromamba", "PATH"]),
        (&["--file", "requirements.txt"], 3, ["python3", "PATH"]),
        (&["--file", "uv.lock"], 3, ["uv", "PATH"]),
        (&["--file", "package-lock.json"], 3, ["npm", "PATH"]),
        (&["--file", "x.odd"], 2, ["x.odd", "{prefix}"]),
        (&["--file", "none.yml"], 3, ["none.yml", "No such file"]),
        (&["--file", "x.odd", "--uv"], 2, ["--uv", "--file"]),
    ] {
        let words = [&["create", "e"], words].concat();
        env.envfs_with("PATH", path, &words).fails(code, &expected);
    }
    env.write(&env.work().join("pixi"), "#!/bin/sh\n");
    env.sh("chmod +x pixi").ok();
    env.envfs_with("PATH", path, &["create", "e", "--conda"])
        .fails(3, &["envfs import --in-place .pixi/envs/default"]);
    assert!(!env.home_of("e").exists());
}

/// Copies a directory of files to where this user can read it.
fn copied(env: &TestEnv, dir: &Path) -> String {
    let to = env.root().join("wheels");
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(dir).unwrap().flatten() {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    to.to_str().unwrap().to_owned()
}

/// Returns a `PATH` with the real uv, installed once; `None` where it cannot be.
pub(super) fn uv(env: &TestEnv) -> Option<String> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(|e| e.into_inner());
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("uv");
    if !cache.join("bin/uv").exists() {
        let script = format!(
            "python3 -m venv '{0}' && '{0}/bin/pip' install -q uv",
            cache.display()
        );
        let mut command = Command::new("/bin/sh");
        command.env("PATH", PATH).args(["-ec", &script]);
        let installed = run(command);
        if installed.code != 0 {
            skip(&format!("cannot install uv: {}", installed.err.trim()));
            return None;
        }
    }
    // Where every user can read it.
    let bin = env.root().join("uv-bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy(cache.join("bin/uv"), bin.join("uv")).unwrap();
    Some(format!("{}:{PATH}", bin.display()))
}

#[test]
fn create_says_that_the_command_wrote_nothing() {
    let Some(env) = TestEnv::new() else { return };
    let made = env.envfs(&["create", "e", "--", "true"]).ok();
    let hint = "Write {prefix} in the command";
    assert!(made.err.contains("wrote nothing into"), "{made}");
    assert!(made.err.contains(hint), "{made}");
    let made = env.envfs(&["create", "f", "--", "ls", "{prefix}"]).ok();
    assert!(made.err.contains("wrote nothing into"), "{made}");
    assert!(!made.err.contains(hint), "{made}");
}
