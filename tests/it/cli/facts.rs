//! What the commands tell agrees with what is.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::support::TestEnv;

fn changed() -> Option<TestEnv> {
    let env = TestEnv::new()?;
    env.import_sample("e");
    let prefix = env.mount("e");
    fs::write(prefix.join("new"), "12345").unwrap();
    fs::write(prefix.join("lib/c.txt"), "gamma\ndelta\n").unwrap();
    fs::remove_file(prefix.join("lib/link")).unwrap();
    fs::rename(prefix.join("lib/deep"), prefix.join("lib/moved")).unwrap();
    Some(env)
}

fn count(status: &Value, what: &str) -> u64 {
    status["changes"][what]["entries"].as_u64().unwrap()
}

#[test]
fn status_and_diff_tell_the_same_changes_mounted_or_not() {
    let Some(env) = changed() else { return };
    let mounted = env.envfs(&["diff", "--json", "e"]).ok().json();
    let lines = env.envfs(&["diff", "e"]).ok();
    assert_eq!(
        lines.out,
        "M lib/c.txt\nR lib/deep -> lib/moved/\nD lib/link\nA new\n".replace(
            "R lib/deep -> lib/moved/\nD lib/link\n",
            "D lib/link\nR lib/deep -> lib/moved/\n"
        ),
        "{lines}"
    );
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    for (what, number) in [
        ("added", 1),
        ("modified", 1),
        ("removed", 1),
        ("renamed", 1),
    ] {
        assert_eq!(count(&status, what), number, "{status}");
        let in_diff = mounted
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["change"] == what);
        assert_eq!(in_diff.count() as u64, number, "{mounted}");
    }
    assert_eq!(status["changes"]["added"]["bytes"], 5);
    assert_eq!(status["state"], "mounted");
    assert!(status["daemon_pid"].is_u64());
    env.envfs(&["unmount", "e"]).ok();
    assert_eq!(env.envfs(&["diff", "--json", "e"]).ok().json(), mounted);
    let after = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(after["changes"], status["changes"]);
    assert_ne!(after["state"], "mounted");
    // Those below a path only.
    assert_eq!(
        env.envfs(&["diff", "e", "lib/c.txt", "new"]).ok().out,
        "M lib/c.txt\nA new\n"
    );
    assert_eq!(env.envfs(&["diff", "e", "bin"]).ok().out, "");
}

#[test]
fn stats_tell_what_was_asked_and_how_long_it_took() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let content = fs::read(prefix.join("lib/c.txt")).unwrap();
    fs::write(prefix.join("new"), [b'x'; 5000]).unwrap();
    assert!(!prefix.join("nowhere").exists());
    let stats = env.envfs(&["stats", "--json", "e"]).ok().json();
    assert_eq!(stats["read_bytes"], content.len(), "{stats}");
    assert_eq!(stats["written_bytes"], 5000, "{stats}");
    // The directory, the file in it, and two that are not there.
    assert!(
        stats["requests"]["lookup"]["count"].as_u64().unwrap() >= 4,
        "{stats}"
    );
    assert_eq!(stats["requests"]["make"]["count"], 1, "{stats}");
    assert!(stats["requests"].get("rename").is_none(), "{stats}");
    for (kind, times) in stats["requests"].as_object().unwrap() {
        let time = |name: &str| times[name].as_f64().unwrap();
        let in_order = [
            time("p50_us"),
            time("p99_us"),
            time("max_us"),
            time("total_us"),
        ];
        assert!(in_order[0] > 0.0 && in_order.is_sorted(), "{kind}: {times}");
    }
    let images = &stats["images"];
    assert!(images["data_blocks"].as_u64().unwrap() >= 1, "{stats}");
    assert_eq!(
        images["data_cache"]["misses"], images["data_blocks"],
        "{stats}"
    );
    assert!(
        images["metadata_cache"]["hits"].as_u64().unwrap() > 0,
        "{stats}"
    );

    let told = env.envfs(&["stats", "e"]).ok();
    for word in ["lookup", "make", "99 % within", "written by programs"] {
        assert!(told.out.contains(word), "{word}: {told}");
    }
    env.envfs(&["unmount", "e"]).ok();
    assert_eq!(env.envfs(&["stats", "e"]).code, 3);
}

#[test]
fn diff_shows_the_lines_of_text_files_only() {
    let Some(env) = changed() else { return };
    fs::write(env.prefix("e").join("binary"), b"\0\x01\xff\n\0").unwrap();
    let shown = env.envfs(&["diff", "--content", "e"]).ok();
    assert!(shown.out.contains("+delta"), "{shown}");
    assert!(!shown.out.contains("-gamma"), "{shown}");
    assert!(shown.out.contains("+12345"), "{shown}");
    assert!(!shown.out.contains('\0'), "{shown}");
}

#[test]
fn list_paths_and_log_name_what_is_there() {
    let Some(env) = changed() else { return };
    env.envfs(&["create", "other"]).ok();
    let list = env.envfs(&["list", "--json"]).ok().json();
    let names: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["e", "other"]);
    assert_eq!(
        (&list[0]["state"], &list[0]["revision"]),
        (&"mounted".into(), &1.into())
    );
    assert_eq!(list[0]["prefix"], env.prefix("e").to_str().unwrap());
    let paths = env.envfs(&["paths", "--json", "e"]).ok().json();
    for (what, path) in paths.as_object().unwrap() {
        let path = Path::new(path.as_str().unwrap());
        let may_lack = ["config", "strays"].contains(&what.as_str());
        assert!(may_lack || path.exists(), "{what}: {}", path.display());
    }
    let image = Path::new(paths["image"].as_str().unwrap());
    let meta = fs::metadata(image).unwrap();
    assert_eq!(list[0]["image_bytes"], meta.len());
    assert_eq!(meta.mode() & 0o777, 0o444, "images are immutable");
    env.envfs(&["commit", "-m", "it's \"ünï\"\n", "e"]).ok();
    let log = env.envfs(&["log", "--json", "e"]).ok().json();
    let log = log.as_array().unwrap();
    assert_eq!(log.len(), 2);
    assert_eq!(
        (&log[0]["revision"], &log[0]["parent"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        (&log[0]["current"], &log[1]["current"]),
        (&true.into(), &false.into())
    );
    assert!(
        log[0]["message"]
            .as_str()
            .unwrap()
            .starts_with("it's \"ünï\"")
    );
    assert_eq!(log[1]["kind"], "import");
    assert_eq!(env.count(&["log", "-n", "1", "e"]), 1);
    assert_eq!(env.envfs(&["--quiet", "list"]).ok().err, "");
}

#[test]
fn the_active_environment_is_meant_where_none_is_named() {
    let Some(env) = changed() else { return };
    for words in [
        &["status"][..],
        &["diff"],
        &["paths"],
        &["log"],
        &["verify"],
        &["mount"],
        &["status", "--json"],
        &["commit", "-q"],
        &["discard", "-y"],
        &["rollback", "-y"],
        &["gc"],
        &["unmount"],
    ] {
        if words == ["gc"] {
            continue; // Means all.
        }
        env.envfs(words).fails(2, &["activate"]);
        env.envfs_with("ENVFS_ENV", "e", words).ok();
        env.envfs_with("ENVFS_ENV", "gone", words)
            .fails(3, &["gone"]);
    }
}

#[test]
fn exported_images_are_imported_again_the_same() {
    let Some(env) = changed() else { return };
    env.envfs(&["commit", "-q", "e"]).ok();
    let file = env.work().join("out.sqfs");
    let word = file.to_str().unwrap();
    env.envfs(&["export", "e", word]).ok();
    env.envfs(&["export", "e", word]).fails(4, &["out.sqfs"]);
    env.envfs(&["export", "--rev", "9", "e", "x.sqfs"])
        .fails(3, &["9"]);
    env.envfs(&["export", "--force", "--rev", "1", "e", word])
        .ok();
    env.envfs(&["import", "-q", word, "again"]).ok();
    let prefix = env.mount("again");
    assert_eq!(fs::read(prefix.join("lib/c.txt")).unwrap(), b"gamma\n");
    let leftovers: Vec<_> = fs::read_dir(env.work())
        .unwrap()
        .flatten()
        .map(|f| f.file_name())
        .collect();
    assert_eq!(leftovers.len(), 2, "{leftovers:?}");
}

#[test]
fn gc_keeps_what_it_should_and_rename_and_remove_do_what_they_say() {
    let Some(env) = changed() else { return };
    for number in 0..3 {
        fs::write(env.prefix("e").join("number"), number.to_string()).unwrap();
        env.envfs(&["commit", "-q", "e"]).ok();
    }
    let images = |name: &str| {
        fs::read_dir(env.home_of(name).join("images"))
            .unwrap()
            .count()
    };
    assert_eq!(images("e"), 4);
    env.envfs(&["gc", "--dry-run", "--keep", "2", "e"]).ok();
    assert_eq!(images("e"), 4);
    env.envfs(&["gc", "--keep", "2", "e"]).ok();
    assert_eq!(images("e"), 2);
    env.verify("e");
    assert_eq!(fs::read(env.prefix("e").join("number")).unwrap(), b"2");
    env.envfs(&["rename", "e", "f"]).fails(5, &["unmount"]);
    env.envfs(&["unmount", "e"]).ok();
    env.envfs(&["rename", "e", "f"]).ok();
    env.envfs(&["status", "e"]).fails(3, &["'e'"]);
    let prefix = env.mount("f");
    assert_eq!(prefix, env.prefix("e"), "the prefix stays");
    assert_eq!(fs::read(prefix.join("number")).unwrap(), b"2");
    env.envfs(&["unmount", "f"]).ok();
    env.envfs(&["remove", "f"]).fails(2, &["-y"]);
    env.mount("f");
    env.envfs(&["remove", "-y", "f"]).ok(); // Unmounts it first.
    assert!(!env.home_of("f").exists() && !prefix.exists());
    assert_eq!(env.count(&["list"]), 0);
}

#[test]
fn commands_at_the_same_time_do_not_get_in_each_others_way() {
    let Some(env) = changed() else { return };
    env.envfs(&["unmount", "e"]).ok();
    let all = |words: &[&str]| {
        let children: Vec<_> = (0..6)
            .map(|_| {
                let mut command = env.envfs_command(words);
                command
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        for child in children {
            crate::support::finish(child, words.join(" ")).ok();
        }
    };
    all(&["status", "e"]);
    all(&["list"]);
    all(&["diff", "e"]);
    all(&["mount", "e"]);
    assert_eq!(crate::support::mounts_below(env.root()).len(), 1);
    all(&["run", "e", "tool"]);
    all(&["commit", "e"]);
    assert_eq!(env.count(&["log", "e"]), 2);
    all(&["unmount", "e"]);
}

#[test]
fn a_revision_with_a_name_is_kept_by_gc_and_found_by_it() {
    for is_mounted in [true, false] {
        let Some(env) = TestEnv::new() else { return };
        env.import_sample("e");
        for number in 2..=4 {
            fs::write(env.mount("e").join("file"), number.to_string()).unwrap();
            env.envfs(&["commit", "e"]).ok();
        }
        if !is_mounted {
            env.envfs(&["unmount", "e"]).ok();
        }
        env.envfs(&["tag", "e", "good", "--rev", "2"]).ok();
        env.envfs(&["tag", "e", "last"]).ok();
        env.envfs(&["tag", "e", "12"]).fails(2, &["digits"]);
        env.envfs(&["tag", "e", "x", "--rev", "9"])
            .fails(3, &["no revision 9"]);
        env.envfs(&["tag", "e", "-d", "nosuch"])
            .fails(3, &["nosuch"]);
        let tags = env.envfs(&["tag", "e", "--json"]).ok().json();
        assert_eq!(tags[0]["tag"], "good");
        assert_eq!(
            (&tags[0]["revision"], &tags[1]["revision"]),
            (&2.into(), &4.into())
        );
        assert!(env.envfs(&["log", "e"]).ok().out.contains("[good]"));
        env.envfs(&["gc", "e", "--keep", "1"]).ok();
        let log = env.envfs(&["log", "--json", "e"]).ok().json();
        let left: Vec<_> = log
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["revision"].clone())
            .collect();
        assert_eq!(left, [4, 2], "{log}");
        env.envfs(&["export", "e", "--rev", "good", "good.sqfs"])
            .ok();
        env.envfs(&["rollback", "e", "nosuch"])
            .fails(3, &["nosuch", "envfs log e"]);
        env.envfs_with("ENVFS_ENV", "e", &["rollback", "good"]).ok();
        assert_eq!(
            fs::read_to_string(env.mount("e").join("file")).unwrap(),
            "2"
        );
        env.envfs(&["tag", "e", "good"]).ok();
        env.envfs(&["tag", "e", "-d", "last"]).ok();
        let tags = env
            .envfs_with("ENVFS_ENV", "e", &["tag", "--json"])
            .ok()
            .json();
        assert_eq!(tags.as_array().unwrap().len(), 1, "{tags}");
        assert_eq!(
            tags[0]["revision"], 5,
            "the name went to the current revision"
        );
    }
}

#[test]
fn discarded_files_are_kept_and_only_then_it_says_so() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e").display().to_string();
    let discard = |words: &[&str]| {
        let done = env.envfs(&[&["discard", "-y", "e"], words].concat()).ok();
        format!("{}{}", done.out, done.err)
    };
    let nothing = env.envfs(&["discard", "--json", "e"]).ok().json();
    assert_eq!(nothing["changes"]["added"]["entries"], 0, "{nothing}");
    let stay = "The files are kept in";
    env.sh(&format!("rm '{at}/lib/c.txt'; chmod 700 '{at}/bin/tool'"))
        .ok();
    assert!(!discard(&[]).contains(stay), "there are none");
    env.sh(&format!(
        "echo changed >'{at}/lib/c.txt'; rm '{at}/bin/tool'"
    ))
    .ok();
    let strays = env.home_of("e").join("strays");
    let said = discard(&[&format!("{at}/lib/c.txt")]);
    assert!(
        said.contains(&format!("{stay} {}", strays.display())),
        "{said}"
    );
    let kept = std::fs::read_dir(&strays)
        .unwrap()
        .map(|kept| kept.unwrap());
    let kept: Vec<String> = kept
        .map(|kept| std::fs::read_to_string(kept.path()).unwrap())
        .collect();
    assert_eq!(kept, ["changed\n"]);
    env.sh(&format!("echo changed >'{at}/lib/c.txt'")).ok();
    let layers = env.home_of("e").join("layers");
    let said = discard(&[]);
    let list = env.envfs(&["list", "--json"]).ok().json();
    assert_eq!(list[0]["upper_files"], 0, "they are no changes any more");
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(status["upper_files"], 0, "{status}");
    env.envfs(&["unmount", "e"]).ok();
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(status["upper_files"], 0, "{status}");
    assert!(
        said.contains(&format!("{stay} {}", layers.display())),
        "{said}"
    );
    env.envfs(&["gc", "e"]).ok();
    assert!(std::fs::read_dir(&strays).map_or(true, |mut all| all.next().is_none()));
}

#[test]
fn verify_tells_what_the_images_take_on_the_disk() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("source");
    env.write(&source.join("zeroes"), vec![0; 8 << 20]);
    env.envfs(&["import", source.to_str().unwrap(), "e"]).ok();
    let images = fs::read_dir(env.home_of("e").join("images")).unwrap();
    let on_disk: u64 = images
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    let verified = env.envfs(&["verify", "--json", "e"]).ok().json();
    assert_eq!(verified["bytes"], on_disk);
    let said = env.envfs(&["verify", "e"]).ok();
    assert!(said.err.contains("e: 1 image, "), "{said}");
    assert!(!said.err.contains("MiB"), "{said}");
}
