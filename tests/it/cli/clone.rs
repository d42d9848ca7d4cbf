//! Cloning an environment: the image is shared, changes and history are not.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::support::tree::{self, Look};
use crate::support::{Disk, TestEnv, has, images};

fn image(env: &TestEnv, name: &str) -> PathBuf {
    images::current(env, name)
}

#[test]
fn a_clone_shares_the_image_and_nothing_else() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let done = env.envfs(&["clone", "--json", "e", "c"]).ok().json();
        assert_eq!(done["sharing"], "hard-link", "{done}");
        assert_eq!(done["source_revision"], 1, "{done}");
        let (theirs, ours) = (image(&env, "e"), image(&env, "c"));
        let meta = fs::metadata(&ours).unwrap();
        assert_eq!(meta.ino(), fs::metadata(&theirs).unwrap().ino());
        assert_eq!(meta.nlink(), 2);
        let log = env.envfs(&["log", "--json", "c"]).ok().json();
        assert_eq!(log.as_array().unwrap().len(), 1, "{log}");
        assert_eq!(log[0]["message"], "clone of e, revision 1", "{log}");
        let origin = |name: &str| {
            let shown = env.envfs(&["show", "--json", name]).ok().json();
            shown["origin"].as_str().unwrap().to_owned()
        };
        assert_eq!(origin("c"), origin("e"));

        let own = env.mount("c");
        let digest = |dir: &std::path::Path| {
            let script = format!(
                "cd '{}' && find . -printf '%p %y %m %U %G %n %l %Ts\\n' | sort && find . -type f -exec sha256sum \
                 {{}} + | sort",
                dir.display()
            );
            env.sh(&script).ok().out
        };
        let before = digest(&prefix);
        assert_eq!(digest(&own), before);
        // Changes and commits of each are its own.
        env.sh(&format!("echo ours >'{}/lib/a.txt'", own.display()))
            .ok();
        env.envfs(&["commit", "c"]).ok();
        let changed = digest(&own);
        assert_eq!(digest(&prefix), before);
        env.sh(&format!("echo theirs >'{}/lib/c.txt'", prefix.display()))
            .ok();
        env.envfs(&["commit", "e"]).ok();
        assert_eq!(digest(&own), changed);
        // Collecting garbage in one frees nothing as long as the other has it.
        let collected = env.envfs(&["gc", "--json", "--keep", "1", "e"]).ok().json();
        assert_eq!(collected["e"]["images"], 1, "{collected}");
        assert_eq!(collected["e"]["image_bytes"], 0, "{collected}");
        env.verify("c");
        env.envfs(&["rollback", "c", "1"]).ok();
        assert_eq!(digest(&own), before);
        env.envfs(&["remove", "-y", "e"]).ok();
        env.envfs(&["unmount", "c"]).ok();
        env.verify("c");
        env.mount("c");
        assert_eq!(digest(&own), before);
    }
}

#[test]
fn uncommitted_changes_are_left_out_with_a_warning() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let before = tree::read(&prefix);
    fs::write(prefix.join("new"), "new").unwrap();
    for is_mounted in [true, false] {
        let name = format!("c{is_mounted}");
        let done = env.envfs(&["clone", "e", &name]).ok();
        let warning = format!("uncommitted changes of e are not in {name}: 1 added");
        assert!(done.err.contains(&warning), "{done}");
        let own = env.mount(&name);
        tree::assert_same(&before, &tree::read(&own), Look::ALL, &name);
        env.envfs(&["unmount", "e"]).ok();
    }
    env.mount("e");
    assert!(prefix.join("new").exists());
}

#[test]
fn clone_supports_amended_revisions() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let mut trees = vec![tree::read(&prefix)];
    for round in 0..3 {
        fs::write(
            prefix.join(format!("lib/c{round}.txt")),
            "x".repeat(round + 1),
        )
        .unwrap();
        fs::remove_dir_all(prefix.join("lib/deep")).ok();
        env.envfs(&["commit", "e"]).ok();
        trees.push(tree::read(&prefix));
    }
    env.envfs(&["tag", "e", "second", "--rev", "2"]).ok();
    for (rev, expected) in [("1", &trees[0]), ("second", &trees[1]), ("4", &trees[3])] {
        let name = format!("c{rev}");
        env.envfs(&["clone", "e", &name, "--rev", rev, "-m", "mine"])
            .ok();
        let own = env.mount(&name);
        tree::assert_same(expected, &tree::read(&own), Look::ALL, &name);
        let log = env.envfs(&["log", "--json", &name]).ok().json();
        assert_eq!(log[0]["message"], "mine");
        // It goes on from there.
        fs::write(own.join("lib/further"), rev).unwrap();
        env.envfs(&["commit", &name]).ok();
        let after = tree::read(&own);
        env.envfs(&["unmount", &name]).ok();
        env.verify(&name);
        env.mount(&name);
        tree::assert_same(&after, &tree::read(&own), Look::ALL, &name);
    }
    env.envfs(&["clone", "e", "c9", "--rev", "9"])
        .fails(3, &["no revision 9"]);
    env.envfs(&["clone", "e", "c1"])
        .fails(4, &["already exists"]);
    env.envfs(&["clone", "other", "c9"])
        .fails(3, &["no environment 'other'"]);
    let taken = prefix.to_str().unwrap();
    env.envfs(&["clone", "e", "c9", "--prefix", taken])
        .fails(2, &["not empty"]);
    assert_eq!(env.count(&["list"]), 4, "nothing is left of what failed");
}

#[test]
fn a_clone_of_a_virtual_environment_has_its_own_prefix() {
    if !has("python3") {
        return;
    }
    for env in TestEnv::of_all_users() {
        env.envfs(&["create", "v", "--", "python3", "-m", "venv", "{prefix}"])
            .ok();
        let (old, new) = (env.prefix("v"), env.prefix("w"));
        let done = env.envfs(&["clone", "--json", "v", "w"]).ok().json();
        assert_eq!(done["sharing"], "hard-link", "{done}");
        assert_eq!(
            done["relocated"]["from"][0],
            old.to_str().unwrap(),
            "{done}"
        );
        let log = env.envfs(&["log", "--json", "w"]).ok().json();
        assert_eq!(log.as_array().unwrap().len(), 2, "{log}");
        assert_eq!(env.mount("w"), new);
        let pip = env
            .sh(&format!("'{}/bin/pip' --version", new.display()))
            .ok();
        assert!(pip.out.contains(new.to_str().unwrap()), "{pip}");
        let script = format!(
            "grep -rlF --exclude='*.pyc' '{}' '{}' || true",
            old.display(),
            new.display()
        );
        assert_eq!(env.sh(&script).ok().out, "");
        // The first revision is that of the source.
        env.envfs(&["unmount", "w"]).ok();
        env.envfs(&["rollback", "-y", "w", "1"]).ok();
        env.mount("w");
        env.mount("v");
        assert_eq!(tree::digest(&env, &old), tree::digest(&env, &new));
        env.verify("w");
        env.envfs(&["clone", "--no-relocate", "v", "x"]).ok();
        assert_eq!(env.count(&["log", "x"]), 1);
    }
    // A tree that is no environment is cloned as it is.
    let Some(env) = TestEnv::new() else { return };
    let source = env.import_sample("e");
    let own = env.prefix("e");
    drop(source);
    let at = env.mount("e");
    fs::write(at.join("lib/notes"), own.to_str().unwrap()).unwrap();
    env.envfs(&["commit", "e"]).ok();
    let done = env.envfs(&["clone", "--json", "e", "c"]).ok().json();
    assert!(done["relocated"].is_null(), "{done}");
}

#[test]
fn images_are_copied_without_hard_links() {
    let Some(env) = TestEnv::new() else { return };
    if !has("chattr") {
        return;
    }
    let Some(disk) = Disk::new(&env.work(), "mkfs.ext4", &["-q", "-F"], 64) else {
        return;
    };
    let env = env.with_store(&disk.at().join("store"));
    env.import_sample("e");
    let file = image(&env, "e");
    // An immutable file gets no further name.
    env.sh(&format!("chattr +i '{}'", file.display())).ok();
    let done = env.envfs(&["clone", "--json", "e", "c"]);
    env.sh(&format!("chattr -i '{}'", file.display())).ok();
    assert_eq!(done.ok().json()["sharing"], "copy");
    assert_eq!(fs::metadata(image(&env, "c")).unwrap().nlink(), 1);
    env.verify("c");
    let own = env.mount("c");
    assert!(own.join("lib/a.txt").exists());
    env.envfs(&["unmount", "c"]).ok();
}
