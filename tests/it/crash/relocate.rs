//! A relocation that is killed at any step has moved the environment completely or not at all.

use std::fs;
use std::path::Path;

use super::{has_taken_effect, points};
use crate::support::tree::{self, Look};
use crate::support::{TestEnv, samples};

/// Returns a small environment that was made at `made`, and imports it.
fn import(env: &TestEnv, made: &Path) {
    let source = env.work().join("source");
    samples::small(env, &source);
    let made = made.display();
    for (path, content) in [
        ("pyvenv.cfg", format!("command = python3 -m venv {made}\n")),
        ("bin/tool2", format!("#!{made}/bin/tool -x\n{made}\n")),
        ("bin/activate", format!("VIRTUAL_ENV={made}\n")),
        ("lib/conf.py", format!("{made}\n")),
    ] {
        env.write(&source.join(path), content);
    }
    env.write(&source.join("lib/__pycache__/conf.cpython-312.pyc"), "x");
    let link = source.join("lib/own");
    std::os::unix::fs::symlink(format!("{made}/lib"), link).unwrap();
    env.envfs(&["import", "-q", "--no-relocate", "source", "e"])
        .ok();
}

#[test]
fn a_relocation_is_atomic_at_every_fault_point() {
    let all = points("relocate").into_iter().chain(points("commit"));
    for point in all {
        let Some(env) = TestEnv::new() else { return };
        let old = env.prefix("e");
        let new = env.work().join("moved");
        import(&env, &old);
        let before = tree::read(&env.mount("e"));
        env.envfs(&["unmount", "e"]).ok();
        let words = ["relocate", "e", new.to_str().unwrap()];
        let done = env.envfs_with("ENVFS_FAULT", point, &words);
        assert_eq!(done.code, 128 + 9, "{point}: {done}");

        let is_done = matches!(point, "commit.flipped" | "commit.cleaned");
        env.envfs(&["status", "e"]).ok();
        let status = env.envfs(&["status", "--json", "e"]).ok().json();
        assert_eq!(status["changes"]["modified"]["entries"], 0, "{point}");
        let at = env.mount("e");
        assert_eq!(
            at,
            if is_done { new.clone() } else { old.clone() },
            "{point}"
        );
        if !is_done {
            tree::assert_same(&before, &tree::read(&at), Look::ALL, point);
            env.envfs(&["unmount", "e"]).ok();
            env.verify("e");
            env.envfs(&words).ok();
            env.mount("e");
        }
        let script = fs::read_to_string(new.join("bin/tool2")).unwrap();
        let shown = new.display();
        assert_eq!(
            script,
            format!("#!{shown}/bin/tool -x\n{shown}\n"),
            "{point}"
        );
        let link = fs::read_link(new.join("lib/own")).unwrap();
        assert_eq!(link, new.join("lib"), "{point}");
        assert!(!new.join("lib/__pycache__/conf.cpython-312.pyc").exists());
        assert_eq!(env.count(&["log", "e"]), 2, "{point}");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        let layers = fs::read_dir(env.home_of("e").join("layers")).unwrap();
        assert_eq!(layers.count(), 1, "{point}: layers were left");
    }
}

#[test]
fn undo_of_a_relocation_is_atomic_at_every_fault_point() {
    for point in points("undo") {
        let Some(env) = TestEnv::new() else { return };
        let old = env.prefix("e");
        let new = env.work().join("moved");
        import(&env, &old);
        let before = tree::read(&env.mount("e"));
        env.envfs(&["unmount", "e"]).ok();
        env.envfs(&["relocate", "e", new.to_str().unwrap()]).ok();
        env.mount("e");
        fs::write(new.join("lib/conf.py"), "changed after the move").unwrap();
        let after = tree::read(&new);
        env.envfs(&["unmount", "e"]).ok();
        let done = env.envfs_with("ENVFS_FAULT", point, &["undo", "e"]);
        assert_eq!(done.code, 128 + 9, "{point}: {done}");

        let (at, expected) = match has_taken_effect(point) {
            true => (&old, &before),
            false => (&new, &after),
        };
        assert_eq!(env.mount("e"), *at, "{point}");
        tree::assert_same(expected, &tree::read(at), Look::ALL, point);
        env.kill_daemon("e");
        assert_eq!(env.mount("e"), *at, "{point}, mounted again");
        tree::assert_same(expected, &tree::read(at), Look::ALL, point);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
        // The undo of the undo, or the undo.
        env.envfs(&["undo", "e"]).ok();
        let (at, expected) = match has_taken_effect(point) {
            true => (&new, &after),
            false => (&old, &before),
        };
        assert_eq!(env.mount("e"), *at, "{point}");
        tree::assert_same(expected, &tree::read(at), Look::ALL, point);
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn an_import_or_a_clone_that_is_killed_while_it_relocates_leaves_no_environment() {
    let made = Path::new("/opt/made-elsewhere");
    for command in ["import", "clone"] {
        let mut all = points("relocate");
        all.extend(points("commit"));
        if command == "import" {
            all.extend(points("clone"));
        }
        for point in all {
            let what = format!("{command} at {point}");
            let Some(env) = TestEnv::new() else { return };
            import(&env, made);
            let before = env.count(&["list"]);
            let words = match command {
                "import" => ["import", "source", "f"],
                _ => ["clone", "e", "f"],
            };
            let done = env.envfs_with("ENVFS_FAULT", point, &words);
            assert_eq!(done.code, 128 + 9, "{what}: {done}");
            assert_eq!(env.count(&["list"]), before, "{what}");
            env.envfs(&words).ok();
            let at = env.mount("f");
            let script = fs::read_to_string(at.join("bin/tool2")).unwrap();
            let shown = at.display();
            assert_eq!(
                script,
                format!("#!{shown}/bin/tool -x\n{shown}\n"),
                "{what}"
            );
            env.envfs(&["gc"]).ok();
            let homes = fs::read_dir(env.store().join("store")).unwrap().count();
            assert_eq!(homes, before + 1, "{what}: gc did not remove the rest");
            env.verify("f");
        }
    }
}
