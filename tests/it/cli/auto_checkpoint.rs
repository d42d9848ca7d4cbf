//! Automatic checkpoints before package operations.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use super::create::uv;
use super::relocate::tools;
use super::venv::wheels;
use crate::support::tree::digest;
use crate::support::{TestEnv, has};

/// Returns the messages of the checkpoints, oldest first.
fn checkpoints(env: &TestEnv, name: &str) -> Vec<String> {
    let log = env.envfs(&["log", "--all", "--json", name]).ok().json();
    let rows = log.as_array().unwrap().iter().rev();
    let rows = rows.filter(|row| row["kind"] == "checkpoint");
    rows.map(|row| row["message"].as_str().unwrap().to_owned())
        .collect()
}

/// Imports a virtual environment and mounts it. Returns what installs into it offline.
fn venv(env: &TestEnv, wheels: &Path) -> String {
    let own = env.work().join("wheels");
    fs::create_dir(&own).unwrap();
    for file in fs::read_dir(wheels).unwrap().flatten() {
        fs::copy(file.path(), own.join(file.file_name())).unwrap();
    }
    env.user().give_tree(&own);
    let links = format!("--find-links={}", own.display());
    env.envfs(&["create", "-q", "v", "--venv", "--no-index", &links, "six"])
        .ok();
    env.mount("v");
    format!("install -q --no-index --disable-pip-version-check {links}")
}

#[test]
fn undo_after_pip_restores_every_byte_without_a_checkpoint_by_hand() {
    if !has("python3") {
        return;
    }
    let Some(wheels) = wheels() else { return };
    for env in TestEnv::of_all_users() {
        let install = venv(&env, &wheels);
        let prefix = env.prefix("v");
        let sh = |script: &str| env.sh(&format!("cd '{}' && {script}", prefix.display()));
        let made = checkpoints(&env, "v").len();
        sh("echo mine >notes && bin/python -c 'import pip, json'").ok();
        assert_eq!(checkpoints(&env, "v").len(), made, "no package has changed");
        let before = digest(&env, &prefix);
        sh(&format!("bin/pip {install} idna packaging")).ok();
        let one = checkpoints(&env, "v");
        assert_eq!(one.len(), made + 1, "{one:?}");
        let last = one.last().unwrap();
        assert!(last.starts_with("automatic, before: pip install"), "{last}");
        let between = digest(&env, &prefix);
        sh("bin/python -m pip uninstall -q -y six idna").ok();
        assert_eq!(checkpoints(&env, "v").len(), made + 2);
        assert_ne!(digest(&env, &prefix), between);
        let said = env.envfs(&["undo", "v"]).ok();
        assert!(said.err.contains("returned to checkpoint"), "{said}");
        assert_eq!(digest(&env, &prefix), between, "before the second pip");
        sh("bin/python -c 'import six, idna, packaging'").ok();
        let log = env.envfs(&["log", "--all", "--json", "v"]).ok().json();
        let row = log
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["message"] == *last);
        let first = row.unwrap()["operation"].to_string();
        env.envfs(&["undo", "--operation", &first, "v"]).ok();
        assert_eq!(digest(&env, &prefix), before, "before the first pip");
        env.verify("v");
        env.envfs(&["unmount", "v"]).ok();
    }
}

#[test]
fn uv_and_npm_get_one_checkpoint_for_each_run() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let mut expected = 0;
    if has("npm") {
        let package = env.work().join("package");
        let json = r#"{"name": "own", "version": "1.0.0"}"#;
        env.write(&package.join("package.json"), json);
        let install = format!(
            "cd '{}' && npm install --silent --no-audit --offline --install-links '{}'",
            prefix.display(),
            package.display()
        );
        let before = digest(&env, &prefix);
        env.sh(&install).ok();
        expected += 1;
        let made = checkpoints(&env, "e");
        assert_eq!(made.len(), expected, "{made:?}");
        assert!(made[0].contains("npm install"), "{made:?}");
        assert!(prefix.join("node_modules/own/package.json").exists());
        env.envfs(&["undo", "e"]).ok();
        assert_eq!(digest(&env, &prefix), before);
    }
    if has("python3") {
        let Some(wheels) = wheels() else { return };
        let Some(path) = uv(&env) else { return };
        let own = env.work().join("wheels");
        env.sh(&format!("cp -r '{}' '{}'", wheels.display(), own.display()))
            .ok();
        let uv_in = |words: &str| {
            let at = prefix.display();
            env.sh(&format!(
                "cd '{at}' && PATH='{path}' UV_OFFLINE=1 uv -q {words}"
            ))
            .ok();
        };
        uv_in("venv env");
        expected += 1;
        let before = digest(&env, &prefix);
        let links = own.display();
        uv_in(&format!(
            "pip install --python env/bin/python --no-index --find-links '{links}' six idna"
        ));
        expected += 1;
        let made = checkpoints(&env, "e");
        assert_eq!(made.len(), expected, "{made:?}");
        env.envfs(&["undo", "e"]).ok();
        assert_eq!(digest(&env, &prefix), before);
    }
}

#[test]
fn a_script_that_installs_with_rattler_gets_its_checkpoint_before_the_first_file() {
    let Some(tools) = tools() else { return };
    if !has("cc") {
        return;
    }
    let Some(env) = TestEnv::new() else { return };
    env.write(
        &env.work().join("conda_package.py"),
        include_str!("conda_package.py"),
    );
    let python = |words: &str| {
        let tools = tools.display();
        env.sh(&format!("{tools}/python conda_package.py {words}"))
            .ok();
    };
    python("make channel");
    env.write(&env.work().join("source/conda-meta/history"), "");
    env.envfs(&["import", "-q", "source", "c"]).ok();
    let prefix = env.mount("c");
    fs::write(prefix.join("mine"), "uncommitted").unwrap();
    let before = digest(&env, &prefix);
    python(&format!("install channel cache '{}'", prefix.display()));
    assert!(prefix.join("conda-meta/pref-1-0.json").exists());
    let made = checkpoints(&env, "c");
    assert_eq!(made.len(), 1, "{made:?}");
    env.envfs(&["undo", "c"]).ok();
    assert_eq!(digest(&env, &prefix), before);
    env.verify("c");
}

#[test]
fn programs_that_are_no_installers_get_one_checkpoint_for_a_row_of_changes() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let sh = |script: &str| {
        env.sh(&format!("cd '{}' && {script}", prefix.display()))
            .ok()
    };
    sh("echo one >note && mkdir -p lib/py/__pycache__ && echo x >lib/py/__pycache__/m.pyc");
    assert!(checkpoints(&env, "e").is_empty());
    let before = digest(&env, &prefix);
    sh("mkdir conda-meta && cp note conda-meta/a.json && cp note conda-meta/b.json && rm note");
    let made = checkpoints(&env, "e");
    assert_eq!(made, ["automatic, before: mkdir conda-meta"]);
    env.envfs(&["undo", "e"]).ok();
    assert_eq!(digest(&env, &prefix), before);
}

/// Writes a script with the name of an installer, which runs `script` in the environment.
fn installer(env: &TestEnv, name: &str, script: &str) -> String {
    let path = env.work().join(name);
    env.write(
        &path,
        format!("cd '{}' && {script}", env.prefix("e").display()),
    );
    format!("sh '{}'", path.display())
}

#[test]
fn the_checkpoint_of_an_installer_is_before_its_first_change_wherever_that_is() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("mine"), "uncommitted").unwrap();
    let before = digest(&env, &prefix);
    // A package of a library: its record comes last. Child processes belong to the installer.
    let script = "mv bin/tool bin/.old && cp lib/a.txt bin/tool && rm bin/.old && mkdir conda-meta \
                  && sh -c 'cp lib/a.txt conda-meta/tool.json'";
    let conda = installer(&env, "conda", script);
    env.sh(&conda).ok();
    assert_ne!(digest(&env, &prefix), before);
    let made = checkpoints(&env, "e");
    assert_eq!(made, ["automatic, before: conda"]);
    env.envfs(&["undo", "e"]).ok();
    assert_eq!(digest(&env, &prefix), before);
    env.sh(&conda).ok();
    assert_eq!(checkpoints(&env, "e").len(), 2, "another run");
    env.verify("e");
}

#[test]
fn an_installer_goes_on_without_a_checkpoint_during_a_commit() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("mine"), "uncommitted").unwrap();
    fs::write(
        prefix.join("noise"),
        crate::support::samples::noise(64 << 20, 1),
    )
    .unwrap();
    let pip = installer(
        &env,
        "pip",
        "mkdir -p site-packages && : >site-packages/new",
    );
    let commit = std::thread::scope(|scope| {
        let commit = scope.spawn(|| env.envfs(&["commit", "-q", "e"]));
        while !commit.is_finished() {
            env.sh(&pip).ok();
        }
        commit.join().unwrap()
    });
    commit.ok();
    assert!(prefix.join("site-packages/new").exists());
    env.verify("e");
}

#[test]
fn automatic_checkpoints_can_be_turned_off_and_have_a_bound() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    env.write(
        &env.store().join("config.toml"),
        "[history]\nauto_checkpoint = false\n",
    );
    let prefix = env.mount("e");
    env.sh(&format!("mkdir '{}/site-packages'", prefix.display()))
        .ok();
    assert!(checkpoints(&env, "e").is_empty());
    env.envfs(&["unmount", "e"]).ok();
    fs::remove_file(env.store().join("config.toml")).unwrap();
    env.mount("e");
    for number in 0..32 {
        fs::write(prefix.join(format!("file{number}")), "").unwrap();
        env.envfs(&["checkpoint", "-q", "e"]).ok();
    }
    let pip = installer(
        &env,
        "pip",
        "mkdir -p site-packages && echo x >site-packages/$$",
    );
    fs::write(prefix.join("more"), "").unwrap();
    env.sh(&pip).ok();
    assert_eq!(checkpoints(&env, "e").len(), 32, "no more layers");
    let log = fs::read_to_string(env.home_of("e").join("daemon.log")).unwrap();
    assert!(log.contains("no automatic checkpoint"), "{log}");
    env.envfs(&["commit", "-q", "e"]).ok();
    env.sh(&pip).ok();
    assert_eq!(checkpoints(&env, "e").len(), 33);
}
