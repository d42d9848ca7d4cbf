//! Moving environments to other paths, with the tools that make them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::support::tree::{self, Look};
use crate::support::{PATH, Run, TestEnv, has, run, run_with_input, skip};

/// Returns the `bin` of a virtual environment with the tools, which is made once.
pub(super) fn tools() -> Option<PathBuf> {
    const TOOLS: [&str; 6] = [
        "virtualenv",
        "uv",
        "conda-pack",
        "conda-index",
        "conda-package-handling",
        "py-rattler",
    ];
    static MAKING: Mutex<()> = Mutex::new(());
    if !has("python3") {
        return None;
    }
    let _one_at_a_time = MAKING.lock().unwrap_or_else(|e| e.into_inner());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tools");
    let (bin, done) = (dir.join("bin"), dir.join("complete"));
    if done.exists() {
        return Some(bin);
    }
    let (at, pip) = (dir.to_str().unwrap(), bin.join("pip"));
    let (pip, wheels) = (pip.to_str().unwrap(), dir.join("wheels"));
    let wheels = wheels.to_str().unwrap();
    for words in [
        &["python3", "-m", "venv", "--clear", at][..],
        &[&[pip, "install", "-q"], &TOOLS[..]].concat(),
        &[pip, "download", "-q", "--no-deps", "-d", wheels, "pip"],
    ] {
        let mut command = Command::new(words[0]);
        command.env("PATH", PATH).args(&words[1..]);
        let made = run(command);
        if made.code != 0 {
            skip(&format!("no tools: {made}"));
            return None;
        }
    }
    fs::write(done, "").unwrap();
    Some(bin)
}

/// Returns the `bin` of tools that the user of the test can execute: the build directory may be
/// closed to other users.
pub(super) fn tools_of(env: &TestEnv, bin: &Path) -> String {
    let probe = env.sh(&format!("test -x '{}/python'", bin.display()));
    if probe.code == 0 {
        return bin.display().to_string();
    }
    let copy = env.work().join("tools");
    let mut command = Command::new("cp");
    command.arg("-r").arg(bin.parent().unwrap()).arg(&copy);
    run(command).ok();
    copy.join("bin").display().to_string()
}

/// Returns the files in a directory, other than bytecode, that contain a text.
pub(super) fn containing(env: &TestEnv, dir: &Path, text: &Path) -> Vec<String> {
    let script = format!(
        "cd '{}'; grep -rlF --exclude='*.pyc' '{}' . || true; \
         find . -type l -lname '{}*'",
        dir.display(),
        text.display(),
        text.display()
    );
    let found = env.sh(&script).ok().out;
    found.lines().map(str::to_owned).collect()
}

/// Checks the activation scripts of shells that may not be installed: their text has the prefix, or
/// finds it while it runs.
fn assert_scripts_name(env: &TestEnv, prefix: &Path, tool: &str) {
    let at = prefix.to_str().unwrap();
    let all: &[(&str, &str)] = match tool {
        "venv" => &[("Activate.ps1", "$MyInvocation")],
        "virtualenv" => &[
            ("activate.nu", at),
            ("activate.ps1", "$MyInvocation"),
            ("activate_this.py", "__file__"),
        ],
        "uv" => &[
            ("activate.nu", at),
            ("activate.ps1", "$script:THIS_PATH"),
            ("activate.bat", at),
            ("activate_this.py", "__file__"),
        ],
        other => panic!("no tool {other}"),
    };
    for (name, text) in all {
        let script = env.sh(&format!("cat '{at}/bin/{name}'")).ok().out;
        assert!(
            script.contains(text),
            "{tool}: no {text} in {name}: {script}"
        );
    }
}

/// Activates and deactivates an environment in each shell, and returns what `VIRTUAL_ENV` is in
/// between.
fn activated(env: &TestEnv, prefix: &Path) -> Vec<(&'static str, Run)> {
    let at = prefix.display();
    let shells = [
        ("bash", "activate"),
        ("zsh", "activate"),
        ("fish", "activate.fish"),
        ("tcsh", "activate.csh"),
    ];
    let present = shells.into_iter().filter(|(shell, _)| has(shell));
    present
        .map(|(shell, file)| {
            // tcsh knows aliases from the next line on, and has a prompt on a terminal only.
            let before = if shell == "tcsh" { "set prompt=''" } else { "" };
            let script = format!(
                "{before}\nsource '{at}/bin/{file}'\necho $VIRTUAL_ENV\ndeactivate\n\
                 env | grep '^VIRTUAL_ENV=' || true\n"
            );
            let done = run_with_input(env.command(shell), script.as_bytes()).ok();
            assert_eq!(done.out.lines().count(), 1, "{shell}: {done}");
            (shell, done)
        })
        .collect()
}

#[test]
fn virtual_environments_work_at_another_path_and_come_back_unchanged() {
    let Some(tools) = tools() else { return };
    for env in TestEnv::of_all_users() {
        let bin = tools_of(&env, &tools);
        for (tool, command) in [
            ("venv", "python3 -m venv made".to_owned()),
            ("virtualenv", format!("{bin}/python -m virtualenv -q made")),
            (
                "uv",
                format!(
                    "{bin}/uv venv -q --python $(command -v python3) made && {bin}/uv pip install -q --offline --link-mode copy \
                     --no-index --find-links {bin}/../wheels --python made/bin/python pip"
                ),
            ),
        ] {
            let made = env.work().join("made");
            env.sh(&command).ok();
            let before = tree::digest(&env, &made);
            env.envfs(&["import", "-q", "--no-relocate", "made", tool])
                .ok();
            let prefix = env.prefix(tool);
            let moved = env.envfs(&["relocate", "--json", tool]).ok().json();
            assert_eq!(moved["from"], serde_json::json!([made]), "{tool}: {moved}");
            assert_eq!(moved["unknown"], serde_json::json!([]), "{tool}: {moved}");
            env.sh("rm -r made").ok();
            assert_eq!(env.mount(tool), prefix);
            assert_eq!(containing(&env, &prefix, &made), [""; 0], "{tool}");
            let pip = env
                .sh(&format!(
                    "PYTHONDONTWRITEBYTECODE=1 '{}/bin/pip' --version",
                    prefix.display()
                ))
                .ok();
            assert!(pip.out.contains(prefix.to_str().unwrap()), "{tool}: {pip}");
            for (shell, found) in activated(&env, &prefix) {
                assert_eq!(found.line(), prefix.to_str().unwrap(), "{tool}, {shell}");
            }
            assert_scripts_name(&env, &prefix, tool);
            // pip finds what it has installed, and its RECORD is right.
            let check = env.sh(&format!(
                "export PYTHONDONTWRITEBYTECODE=1; '{0}/bin/pip' check && '{0}/bin/pip' show -f pip",
                prefix.display()
            ));
            check.ok();
            env.envfs(&["unmount", tool]).ok();

            let spaced = env.work().join("with space");
            env.envfs(&["relocate", tool, spaced.to_str().unwrap()])
                .ok();
            assert_eq!(env.mount(tool), spaced);
            let pip = env
                .sh("PYTHONDONTWRITEBYTECODE=1 'with space/bin/pip' --version")
                .ok();
            assert!(pip.out.contains("with space"), "{tool}: {pip}");
            for (shell, found) in activated(&env, &spaced) {
                assert_eq!(found.line(), spaced.to_str().unwrap(), "{tool}, {shell}");
            }
            assert_scripts_name(&env, &spaced, tool);
            env.envfs(&["unmount", tool]).ok();
            env.envfs(&["rollback", "-y", tool, "2"]).ok();
            env.envfs(&["relocate", tool, "made"]).ok();
            assert_eq!(env.mount(tool), made);
            let after = tree::digest(&env, &made);
            let differs = after.lines().zip(before.lines()).find(|(a, b)| a != b);
            assert_eq!(differs, None, "{tool}");
            env.envfs(&["unmount", tool]).ok();
            env.verify(tool);
            env.envfs(&["remove", "-y", tool]).ok();
        }
    }
}

/// Imports an environment of conda with a file whose placeholder has 9 bytes.
fn cramped(env: &TestEnv) {
    let source = env.work().join("conda");
    let json = r#"{"name": "x", "paths_data": {"paths": [{"_path": "bin/x", "file_mode": "binary",
        "prefix_placeholder": "/opt/hold"}]}}"#;
    env.write(&source.join("conda-meta/x-1-0.json"), json);
    env.write(&source.join("bin/x"), b"\x7fELF\0/opt/e/lib\0\0\0\0");
    env.write(&source.join("bin/tool"), "#!/opt/e/bin/x\n");
    env.envfs(&["import", "-q", "--no-relocate", "conda", "c"])
        .ok();
}

#[test]
fn a_file_without_space_fails_the_relocation_unless_forced() {
    let Some(env) = TestEnv::new() else { return };
    cramped(&env);
    let new = env.work().join("new");
    let words = ["relocate", "c", new.to_str().unwrap()];
    env.envfs(&words).fails(
        4,
        &["cannot be rewritten: 1", "bin/x", "bytes longer", "--force"],
    );
    assert_eq!(env.count(&["log", "c"]), 1);
    let before = env.mount("c");
    assert_eq!(before, env.prefix("c"));
    let read = |prefix: &Path, path: &str| fs::read_to_string(prefix.join(path)).unwrap();
    assert_eq!(read(&before, "bin/tool"), "#!/opt/e/bin/x\n");
    env.envfs(&words)
        .fails(5, &["is mounted", "envfs unmount c"]);
    env.envfs(&["unmount", "c"]).ok();

    let shown = env.envfs(&[&words[..], &["--dry-run"]].concat()).ok();
    let lines: Vec<&str> = shown.out.lines().collect();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("script") && line.contains("bin/tool"))
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("no space") && line.contains("bin/x"))
    );
    assert_eq!(env.count(&["log", "c"]), 1);

    let done = env.envfs(&[&words[..], &["--force"]].concat()).ok();
    assert!(done.err.contains("bin/x"), "{done}");
    let at = env.mount("c");
    assert_eq!(at, new);
    assert_eq!(
        read(&at, "bin/tool"),
        format!("#!{}/bin/x\n", new.display())
    );
    assert!(read(&at, "bin/x").contains("/opt/e/lib"));
    env.envfs(&["unmount", "c"]).ok();
    // A path that fits.
    env.envfs(&["relocate", "c", "/e/f", "--from", "/opt/e", "--dry-run"])
        .ok();
    env.verify("c");
}

#[test]
fn uncommitted_changes_are_not_lost_in_a_relocation() {
    let Some(env) = TestEnv::new() else { return };
    cramped(&env);
    let prefix = env.mount("c");
    fs::write(prefix.join("mine"), "mine").unwrap();
    env.envfs(&["unmount", "c"]).ok();
    let words = ["relocate", "--force", "c", "new"];
    env.envfs(&words)
        .fails(4, &["uncommitted changes", "commit"]);
    env.mount("c");
    assert_eq!(fs::read(prefix.join("mine")).unwrap(), b"mine");
    env.envfs(&["commit", "c"]).ok();
    env.envfs(&["unmount", "c"]).ok();
    env.envfs(&words).ok();
    assert_eq!(fs::read(env.mount("c").join("mine")).unwrap(), b"mine");
}

#[test]
fn a_tree_without_its_prefix_gets_another_without_a_revision() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    let new = env.work().join("new");
    let done = env.envfs(&["relocate", "e", "new"]).ok();
    assert!(done.err.contains("no file contained the old one"), "{done}");
    assert_eq!(env.count(&["log", "e"]), 1);
    assert_eq!(env.mount("e"), new);
    assert!(!env.prefix("e").exists(), "the old mount point is left");
    tree::assert_same_at(&source, &new, Look::ALL, "moved");
    env.envfs(&["unmount", "e"]).ok();
    for (wanted, why) in [("e-source", "not empty"), ("a:b", "':'")] {
        env.envfs(&["relocate", "e", wanted]).fails(2, &[why]);
    }
    env.import_sample("f");
    let taken = env.prefix("f");
    env.envfs(&["relocate", "e", taken.to_str().unwrap()])
        .fails(4, &["is the prefix of f"]);
}

#[test]
fn an_imported_environment_has_its_own_prefix() {
    let Some(tools) = tools() else { return };
    for env in TestEnv::of_all_users() {
        let bin = tools_of(&env, &tools);
        env.sh(&format!("{bin}/python -m virtualenv -q made")).ok();
        let made = env.work().join("made");
        // Found at a link, moved since it was made, in an archive, in an image.
        env.sh("ln -s made link; tar -cf made.tar -C made .; cp -a made moved")
            .ok();
        env.sh("mksquashfs made made.sqfs -quiet -no-progress").ok();
        for (source, name) in [
            ("made", "a"),
            ("link", "b"),
            ("moved", "c"),
            ("made.tar", "d"),
            ("made.sqfs", "e"),
        ] {
            let done = env.envfs(&["import", source, name]).ok();
            let shown = format!("relocated from {}", made.display());
            assert!(done.err.contains(&shown), "{source}: {done}");
            assert!(!done.err.contains("warning"), "{source}: {done}");
            let prefix = env.mount(name);
            assert_eq!(containing(&env, &prefix, &made), [""; 0], "{source}");
            let pip = env
                .sh(&format!(
                    "PYTHONDONTWRITEBYTECODE=1 '{}/bin/pip' --version",
                    prefix.display()
                ))
                .ok();
            assert!(
                pip.out.contains(prefix.to_str().unwrap()),
                "{source}: {pip}"
            );
            // It is the first revision, and its image the only one.
            assert_eq!(env.count(&["log", name]), 1, "{source}");
            let images = fs::read_dir(env.home_of(name).join("images")).unwrap();
            assert_eq!(images.count(), 1, "{source}");
            env.sh(&format!("echo more >'{}/more'", prefix.display()))
                .ok();
            env.envfs(&["commit", name]).ok();
            env.envfs(&["unmount", name]).ok();
            env.verify(name);
        }
        let done = env.envfs(&["import", "--no-relocate", "made", "f"]).ok();
        assert!(done.err.contains("will run programs in"), "{done}");
        assert_eq!(
            tree::digest(&env, &env.mount("f")),
            tree::digest(&env, &made)
        );
        // Nothing is rewritten where the path stays the same, or in other trees.
        env.envfs(&["unmount", "f"]).ok();
        env.sh("rm -r made").ok();
        let words = [
            "import",
            "--json",
            "made.tar",
            "g",
            "--prefix",
            made.to_str().unwrap(),
        ];
        let done = env.envfs(&words).ok().json();
        assert!(done["relocated"].is_null(), "{done}");
        env.sh("mkdir tree; pwd >tree/notes; echo $PWD/tree >>tree/notes")
            .ok();
        let done = env.envfs(&["import", "--json", "tree", "h"]).ok().json();
        assert!(done["relocated"].is_null(), "{done}");
        let garbage = env.envfs(&["gc", "--json"]).ok();
        assert!(!garbage.out.contains("new-"), "{garbage}");
    }
}

#[test]
fn an_import_fails_because_of_a_file_without_space_unless_forced() {
    let Some(env) = TestEnv::new() else { return };
    cramped(&env);
    env.envfs(&["import", "conda", "d"])
        .fails(4, &["cannot be rewritten: 1", "bin/x", "--force"]);
    assert_eq!(env.count(&["list"]), 1, "nothing is left of it");
    let done = env.envfs(&["import", "--force", "conda", "d"]).ok();
    assert!(done.err.contains("bin/x"), "{done}");
    let at = env.mount("d");
    let script = fs::read_to_string(at.join("bin/tool")).unwrap();
    assert_eq!(script, format!("#!{}/bin/x\n", at.display()));
    env.envfs(&["clone", "c", "e"]).fails(4, &["bin/x"]);
    env.envfs(&["clone", "--force", "c", "e"]).ok();
}

#[test]
fn doctor_lists_references_to_other_prefixes() {
    let Some(env) = TestEnv::new() else { return };
    cramped(&env);
    let check = |words: &[&str]| {
        let found = env.envfs(&[&["doctor", "--json", "c"], words].concat());
        found.ok().json()["references"].clone()
    };
    let unmounted = check(&[]);
    let kinds: Vec<&str> = (unmounted.as_array().unwrap().iter())
        .map(|one| one["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["interpreter", "old-prefix"], "{unmounted}");
    assert_eq!(unmounted[0]["prefix"], "/opt/e");
    assert_eq!(unmounted[1]["paths"], serde_json::json!(["bin/x"]));
    env.mount("c");
    assert_eq!(check(&[]), unmounted, "mounted");
    let shown = env.envfs(&["doctor", "c"]).ok();
    for words in ["bin/tool", "/opt/e", "envfs relocate c"] {
        assert!(shown.out.contains(words), "{words}: {shown}");
    }
    env.envfs(&["unmount", "c"]).ok();
    env.import_sample("e");
    let shown = env.envfs(&["doctor", "e"]).ok();
    assert!(shown.out.contains("all paths lead to"), "{shown}");
}

#[test]
fn a_moved_conda_environment_is_as_one_installed_there() {
    let Some(tools) = tools() else { return };
    if !has("cc") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    let script = env.work().join("conda_package.py");
    env.write(&script, include_str!("conda_package.py"));
    let python = |words: &str| {
        let tools = tools.display();
        env.sh(&format!("{tools}/python conda_package.py {words}"))
            .ok();
    };
    python("make channel");
    python("install channel cache $PWD/made");
    let there = env.work().join("there");
    let word = there.to_str().unwrap();
    let done = env.envfs(&["import", "--json", "made", "c", "--prefix", word]);
    let done = done.ok().json();
    assert_eq!(done["relocated"]["rewritten"]["binaries"], 1, "{done}");
    assert_eq!(env.mount("c"), there);
    let shown = env.sh("there/bin/prefbin; there/bin/prefsh x").ok();
    let lines: Vec<&str> = shown.out.lines().collect();
    assert_eq!(lines[0], format!("{word}/share/data"));
    assert!(lines[1].starts_with(&format!("wrap {word} ")), "{shown}");
    env.sh("cp -a there ours").ok();
    env.envfs(&["unmount", "c"]).ok();
    env.sh("rmdir there").ok();
    python("install channel cache $PWD/there");
    env.sh("diff -r ours there").ok();
    // An archive of conda-pack, without conda-unpack.
    for format in ["tar.gz", "squashfs"] {
        let tools = tools.display();
        env.sh(&format!(
            "{tools}/conda-pack -q -p \"$PWD/there\" -o packed.{format}"
        ))
        .ok();
        let (name, archive) = (&format[..3], format!("packed.{format}"));
        env.envfs(&["import", &archive, name]).ok();
        let at = env.mount(name);
        let at = at.display();
        let shown = env
            .sh(&format!("'{at}/bin/prefbin'; '{at}/bin/wrap' x"))
            .ok();
        assert_eq!(shown.out, format!("{at}/share/data\nwrap {at} x\n"));
    }
}
