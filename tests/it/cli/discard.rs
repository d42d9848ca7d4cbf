//! `envfs discard`.

#![allow(clippy::unwrap_used)]

use crate::support::TestEnv;

#[test]
fn discard_reports_where_files_are_kept() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let at = env.mount("e").display().to_string();
    let discard = |words: &[&str]| {
        let done = env.envfs(&[&["discard", "-y", "e"], words].concat()).ok();
        format!("{}{}", done.out, done.err)
    };
    let nothing = env.envfs(&["discard", "--json", "e"]).ok().json();
    assert_eq!(nothing["changes"]["added"]["entries"], 0, "{nothing}");
    let stay = "Their files are kept in";
    env.sh(&format!("rm '{at}/lib/c.txt'; chmod 700 '{at}/bin/tool'"))
        .ok();
    assert!(!discard(&[]).contains(stay), "no file was kept");
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
    let said = discard(&[]);
    let list = env.envfs(&["list", "--json"]).ok().json();
    assert_eq!(list[0]["upper_files"], 0, "kept files are no changes");
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(status["upper_files"], 0, "{status}");
    env.envfs(&["unmount", "e"]).ok();
    let status = env.envfs(&["status", "--json", "e"]).ok().json();
    assert_eq!(status["upper_files"], 0, "{status}");
    assert!(said.contains("envfs undo"), "{said}");
    env.envfs(&["gc", "e"]).ok();
    assert!(std::fs::read_dir(&strays).map_or(true, |mut all| all.next().is_none()));
}
