//! `envfs undo`, `checkpoint` and `log --all`.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::changed;
use crate::support::tree::{self, Look, Tree};
use crate::support::{Run, TestEnv};

fn read(prefix: &Path) -> Tree {
    tree::read(prefix)
}

#[track_caller]
fn assert_is(expected: &Tree, prefix: &Path, what: &str) {
    tree::assert_same(expected, &tree::read(prefix), Look::ALL, what);
}

/// Lists names, attributes and content of a tree, as the user of the test.
fn seen(env: &TestEnv, prefix: &Path) -> String {
    let script = format!(
        "cd '{}' && find . -printf '%P %y %m %s %l\\n' | sort && find . -type f -exec cksum {{}} + | sort",
        prefix.display()
    );
    env.sh(&script).ok().out
}

/// Runs a command on an environment while it is mounted or not, and leaves it mounted.
fn run_on(env: &TestEnv, name: &str, is_mounted: bool, words: &[&str]) -> Run {
    if !is_mounted {
        env.envfs(&["unmount", name]).ok();
    }
    let done = env.envfs(words).ok();
    env.mount(name);
    done
}

#[test]
fn undo_takes_back_each_operation_mounted_and_not_and_for_each_user() {
    for env in TestEnv::of_all_users() {
        for is_mounted in [true, false] {
            let name = if is_mounted { "m" } else { "u" };
            env.import_sample(name);
            let prefix = env.mount(name);
            let first = seen(&env, &prefix);
            env.sh(&format!(
                "cd '{}' && echo new >new && echo more >>lib/a.txt && rm bin/tool && mv lib/deep moved",
                prefix.display()
            ))
            .ok();
            let mine = seen(&env, &prefix);
            let run = |words: &[&str]| run_on(&env, name, is_mounted, words);
            env.envfs(&["undo", name]).fails(3, &["nothing to undo"]);

            run(&["discard", "-y", name]);
            assert_eq!(first, seen(&env, &prefix), "discarded");
            let said = run(&["undo", name]);
            assert!(said.err.contains("undid operation 1 (discard)"), "{said}");
            assert_eq!(mine, seen(&env, &prefix), "restored from the trash");
            run(&["undo", name]);
            assert_eq!(first, seen(&env, &prefix), "discarded again");
            run(&["undo", name]);
            assert_eq!(mine, seen(&env, &prefix), "and back");

            run(&["commit", "-m", "mine", name]);
            assert_eq!(mine, seen(&env, &prefix), "committed");
            let said = run(&["undo", name]);
            assert!(said.err.contains("revision 1 is current"), "{said}");
            assert_eq!(mine, seen(&env, &prefix), "uncommitted again");
            let status = env.envfs(&["status", "--json", name]).ok().json();
            assert_eq!(status["revision"], 1);
            let said = run(&["undo", name]);
            assert!(said.err.contains("redid operation 5"), "{said}");
            assert_eq!(env.envfs(&["diff", name]).ok().out, "");

            run(&["rollback", "-y", name]);
            assert_eq!(first, seen(&env, &prefix), "rolled back");
            run(&["undo", name]);
            assert_eq!(mine, seen(&env, &prefix), "the rollback is undone");
            env.verify(name);
            env.envfs(&["unmount", name]).ok();
        }
    }
}

#[test]
fn undo_returns_to_a_checkpoint_while_programs_run() {
    let Some(env) = changed() else { return };
    let prefix = env.prefix("e");
    let before = read(&prefix);
    env.envfs(&["checkpoint", "-m", "before pip", "e"]).ok();
    assert_is(&before, &prefix, "a checkpoint changes nothing");
    fs::create_dir(prefix.join("package")).unwrap();
    fs::write(prefix.join("package/module"), "bad").unwrap();
    fs::write(prefix.join("lib/c.txt"), "changed by the package").unwrap();
    fs::remove_file(prefix.join("new")).unwrap();
    // A program that uses what goes away, one that reads what changes, and a removed open file.
    let mut module = File::open(prefix.join("package/module")).unwrap();
    let mut open = File::open(prefix.join("lib/c.txt")).unwrap();
    let after = read(&prefix);

    let planned = env.envfs(&["undo", "-n", "--json", "e"]).ok().json();
    assert_eq!(planned["kind"], "checkpoint");
    assert_eq!(planned["set_aside"]["added"]["entries"], 2, "{planned}");
    assert_is(&after, &prefix, "a dry run changes nothing");
    let said = env.envfs(&["undo", "e"]).ok();
    assert!(said.err.contains("returned to checkpoint 1"), "{said}");
    assert!(said.err.contains("Moved to the trash"), "{said}");
    assert_is(&before, &prefix, "the checkpoint");
    assert!(
        module.read(&mut [0; 8]).is_err(),
        "its object is in the trash"
    );
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text.as_bytes(), fs::read(prefix.join("lib/c.txt")).unwrap());

    env.envfs(&["undo", "e"]).ok();
    assert_is(&after, &prefix, "and back");
    env.kill_daemon("e");
    env.mount("e");
    assert_is(&after, &prefix, "killed and mounted again");
    env.envfs(&["undo", "e"]).ok();
    assert_is(&before, &prefix, "the checkpoint again");
    env.envfs(&["commit", "e"]).ok();
    assert_is(&before, &prefix, "a commit takes the checkpoint along");
    env.verify("e");
}

#[test]
fn log_all_lists_operations_and_gc_empties_the_trash() {
    let Some(env) = changed() else { return };
    env.envfs(&["discard", "-y", "e"]).ok();
    fs::write(env.prefix("e").join("other"), "other").unwrap();
    env.envfs(&["commit", "-q", "-m", "two", "e"]).ok();
    let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
    let log = log.as_array().unwrap();
    assert_eq!(
        (&log[0]["kind"], &log[1]["kind"]),
        (&"commit".into(), &"discard".into())
    );
    assert_eq!(
        (&log[0]["before"], &log[0]["after"]),
        (&1.into(), &2.into())
    );
    assert_eq!(log[0]["message"], "two");
    for entry in log {
        assert_eq!(entry["undoable"], true, "{entry}");
        assert!(entry["kept_bytes"].as_u64().unwrap() > 0, "{entry}");
    }
    let text = env.envfs(&["log", "--all", "e"]).ok().out;
    assert_eq!(text.matches("keeps").count(), 2, "{text}");
    assert_eq!(
        env.envfs(&["log", "--all", "-n", "1", "e"])
            .ok()
            .out
            .lines()
            .count(),
        2
    );

    env.envfs(&["gc", "--keep", "100", "e"]).ok();
    let text = env.envfs(&["log", "--all", "e"]).ok().out;
    assert_eq!(text.matches("cannot be undone").count(), 2, "{text}");
    env.envfs(&["undo", "e"])
        .fails(4, &["cannot be undone", "rollback 1"]);
    env.envfs(&["undo", "--operation", "9", "e"])
        .fails(3, &["no operation 9"]);
    assert_eq!(fs::read(env.prefix("e").join("other")).unwrap(), b"other");
}

#[test]
fn undo_takes_back_a_discard_of_paths_over_any_layers() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let sh = |script: &str| {
            env.sh(&format!("cd '{}' && {script}", prefix.display()))
                .ok()
        };
        let first = seen(&env, &prefix);
        sh("echo new >new && echo more >>lib/a.txt && mv lib/deep moved && chmod 700 bin/tool");
        env.envfs(&["checkpoint", "e"]).ok();
        sh("echo newer >newer && echo again >>lib/a.txt && rm bin/tool && ln new lib/link2");
        let before = seen(&env, &prefix);
        env.envfs(&["discard", "-y", "e", "lib", "bin", "newer"])
            .ok();
        sh("! test -e newer && ! test -e moved && test -e lib/deep && ! test -e lib/link2");
        assert_ne!(seen(&env, &prefix), before);
        let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
        assert_eq!(log[0]["kind"], "discard-paths");
        assert_eq!(log[0]["undoable"], true, "{log}");
        env.envfs(&["unmount", "e"]).ok();
        let said = env.envfs(&["undo", "e"]).ok();
        assert!(said.err.contains("(discard-paths)"), "{said}");
        env.mount("e");
        assert_eq!(seen(&env, &prefix), before, "undone");
        env.envfs(&["undo", "e"]).ok();
        env.envfs(&["discard", "-y", "e", "new"]).ok();
        assert_eq!(seen(&env, &prefix), first, "nothing is left");
        assert_eq!(env.envfs(&["diff", "e"]).ok().out, "");
        env.verify("e");
        env.envfs(&["commit", "e"]).ok();
        assert_eq!(seen(&env, &prefix), first, "committed");
        env.verify("e");
        env.envfs(&["unmount", "e"]).ok();
    }
}

#[test]
fn undo_takes_back_a_restore_of_paths_and_then_what_was_before_it() {
    let Some(env) = TestEnv::new() else { return };
    let name = "e";
    env.envfs(&["create", name]).ok();
    let prefix = env.mount(name);
    for content in ["one", "two"] {
        fs::write(prefix.join("file"), content).unwrap();
        env.envfs(&["commit", "-m", content, name]).ok();
    }
    fs::write(prefix.join("other"), "uncommitted").unwrap();
    let before = read(&prefix);
    let path = prefix.join("file");
    let path = path.to_str().unwrap();
    env.envfs(&["restore", "--from", "2", path]).ok();
    assert_eq!(fs::read(path).unwrap(), b"one");
    let log = env.envfs(&["log", "--all", "--json", name]).ok().json();
    assert!(log[0]["command"].as_str().unwrap().contains("restore"));
    env.envfs(&["undo", name]).ok();
    assert_is(&before, &prefix, "the restore is undone");
    env.envfs(&["undo", "--operation", "2", name]).ok();
    assert_eq!(fs::read(path).unwrap(), b"two");
    let status = env.envfs(&["status", "--json", name]).ok().json();
    assert_eq!(status["revision"], 2, "the commit is undone");
}

/// Imports an environment whose files contain its path, `made`.
fn import_with_prefix(env: &TestEnv, name: &str, made: &Path) {
    let source = env.work().join("source");
    let made = made.display();
    for (path, content) in [
        ("pyvenv.cfg", format!("command = python3 -m venv {made}\n")),
        ("bin/tool", format!("#!{made}/bin/python -x\n{made}\n")),
        ("bin/activate", format!("VIRTUAL_ENV={made}\n")),
        ("lib/data", "data".to_owned()),
    ] {
        env.write(&source.join(path), content);
    }
    env.user().give_tree(&source);
    let source = source.to_str().unwrap();
    env.envfs(&["import", "-q", "--no-relocate", source, name])
        .ok();
}

#[test]
fn undo_moves_an_environment_back_with_every_byte() {
    for env in TestEnv::of_all_users() {
        let old = env.prefix("e");
        import_with_prefix(&env, "e", &old);
        let first = seen(&env, &env.mount("e"));
        env.envfs(&["unmount", "e"]).ok();
        env.envfs(&["relocate", "e", "moved"]).ok();
        let new = env.work().join("moved");
        assert_eq!(env.mount("e"), new);
        env.sh("echo later >moved/later && rm moved/lib/data").ok();
        let later = seen(&env, &new);

        let planned = env.envfs(&["undo", "-n", "e"]).ok();
        let shown = format!("would be {}", old.display());
        assert!(planned.err.contains(&shown), "{planned}");
        env.envfs(&["undo", "e"])
            .fails(5, &["mounted at", "envfs unmount e"]);
        assert_eq!(seen(&env, &new), later);
        env.envfs(&["unmount", "e"]).ok();
        env.sh(&format!(
            "mkdir -p '{0}' && touch '{0}/taken'",
            old.display()
        ))
        .ok();
        env.envfs(&["undo", "e"]).fails(4, &["not empty"]);
        env.sh(&format!("rm '{}/taken'", old.display())).ok();

        let said = env.envfs(&["undo", "e"]).ok();
        assert!(said.err.contains("(relocate); revision 1"), "{said}");
        let shown = format!("is now {}", old.display());
        assert!(said.err.contains(&shown), "{said}");
        assert!(!new.exists(), "the mount point is left");
        assert_eq!(env.mount("e"), old);
        assert_eq!(seen(&env, &old), first);
        assert_eq!(env.envfs(&["diff", "e"]).ok().out, "");
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");

        env.envfs(&["undo", "e"]).ok();
        assert_eq!(env.mount("e"), new);
        assert_eq!(seen(&env, &new), later, "the changes are back, too");
        env.envfs(&["commit", "-q", "e"]).ok();
        env.envfs(&["unmount", "e"]).ok();
        env.verify("e");
    }
}

#[test]
fn undo_of_the_relocation_of_a_clone_restores_the_files_of_the_origin() {
    let Some(env) = TestEnv::new() else { return };
    let prefix = env.prefix("e");
    import_with_prefix(&env, "e", &prefix);
    let first = seen(&env, &env.mount("e"));
    env.envfs(&["clone", "e", "f"]).ok();
    let clone = env.mount("f");
    let relocated = seen(&env, &clone);
    assert_ne!(relocated, first);
    // The path of the clone stays, so that it may be mounted.
    let said = env.envfs(&["undo", "f"]).ok();
    assert!(said.err.contains("contain another path"), "{said}");
    assert_eq!(seen(&env, &clone), first);
    assert_eq!(env.envfs(&["diff", "f"]).ok().out, "");
    env.envfs(&["undo", "f"]).ok();
    assert_eq!(seen(&env, &clone), relocated);
    env.verify("f");
}

#[test]
fn undo_of_the_first_commit_makes_everything_uncommitted_over_an_empty_image() {
    for env in TestEnv::of_all_users() {
        for is_mounted in [true, false] {
            let name = if is_mounted { "m" } else { "u" };
            env.envfs(&["create", "-q", name]).ok();
            let prefix = env.mount(name);
            let at = prefix.display();
            env.sh(&format!(
                "cd '{at}' && mkdir -p a/b && seq 20000 >a/b/file && ln a/b/file link && ln -s a/b sym \
                 && chmod 710 a && mkfifo pipe"
            ))
            .ok();
            let all = seen(&env, &prefix);
            let run = |words: &[&str]| run_on(&env, name, is_mounted, words);
            run(&["commit", "-q", name]);
            run(&["undo", name]);
            assert_eq!(seen(&env, &prefix), all);
            let status = env.envfs(&["status", "--json", name]).ok().json();
            assert_eq!(status["revision"], 1);
            assert_eq!(status["changes"]["added"]["entries"], 6, "{status}");
            run(&["undo", name]);
            assert_eq!(seen(&env, &prefix), all);
            assert_eq!(env.envfs(&["diff", name]).ok().out, "");
            // Before the changes there was nothing.
            run(&["undo", name]);
            run(&["discard", "-y", name]);
            assert_eq!(env.sh(&format!("ls -A '{at}'")).ok().out, "");
            run(&["undo", name]);
            assert_eq!(seen(&env, &prefix), all);
            env.verify(name);
            env.envfs(&["unmount", name]).ok();
        }
    }
}

#[test]
fn what_create_installed_is_the_beginning_and_cannot_be_undone() {
    let Some(env) = TestEnv::new() else { return };
    let script = "echo installed >{prefix}/file";
    env.envfs(&["create", "-q", "e", "--", "sh", "-c", script])
        .ok();
    let prefix = env.prefix("e");
    let words = [
        "nothing to undo",
        "no operation has changed e since it was created",
        "envfs remove e",
    ];
    for _ in 0..2 {
        env.envfs(&["undo", "e"]).fails(3, &words);
        env.envfs(&["undo", "-n", "e"]).fails(3, &words);
        let log = env.envfs(&["log", "--all", "e"]).ok();
        assert!(log.err.contains("no operation yet"), "{log}");
        env.envfs(&["unmount", "e"]).ok();
    }
    env.mount("e");
    let content = || fs::read_to_string(prefix.join("file")).unwrap();
    fs::write(prefix.join("file"), "changed").unwrap();
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&["undo", "e"]).ok();
    env.envfs(&["discard", "-yq", "e"]).ok();
    assert_eq!(content(), "installed\n");
}

#[test]
fn the_trash_is_listed_restored_and_emptied() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let sh = |script: &str| {
            env.sh(&format!("cd '{}' && {script}", prefix.display()))
                .ok()
        };
        let discards: [&[&str]; 2] = [
            &["discard", "-y", "e"],
            &["discard", "-y", "e", "lib", "new"],
        ];
        for words in discards {
            let first = seen(&env, &prefix);
            sh("echo new >new && seq 9000 >>lib/c.txt && rm lib/a.txt && chmod 700 bin");
            let mine = seen(&env, &prefix);
            env.envfs(words).ok();
            let left = seen(&env, &prefix);
            assert_ne!(left, mine);
            let newest = || {
                let log = env.envfs(&["log", "--all", "--json", "e"]).ok().json();
                log[0].clone()
            };
            let kind = if words.len() > 3 {
                "discard-paths"
            } else {
                "discard"
            };
            assert_eq!(newest()["kind"], kind);
            assert_eq!(newest()["undoable"], true);
            env.envfs(&["undo", "e"]).ok();
            assert_eq!(seen(&env, &prefix), mine, "{words:?}");
            env.envfs(&["undo", "e"]).ok();
            assert_eq!(seen(&env, &prefix), left, "{words:?}");
            // The discarded changes are gone after this, and nothing else.
            env.envfs(&["gc", "--keep", "100", "e"]).ok();
            assert_eq!(seen(&env, &prefix), left, "{words:?}");
            env.envfs(&["discard", "-y", "e"]).ok();
            assert_eq!(seen(&env, &prefix), first, "{words:?}");
            env.envfs(&["gc", "--keep", "100", "e"]).ok();
            let text = env.envfs(&["log", "--all", "e"]).ok().out;
            assert!(!text.contains("keeps"), "{text}");
            env.verify("e");
        }
        env.envfs(&["unmount", "e"]).ok();
        let layers = std::fs::read_dir(env.home_of("e").join("layers")).unwrap();
        assert_eq!(layers.count(), 1, "layers are left");
    }
}
