//! The command line treats its users as other tools do.

use crate::support::{TestEnv, has, run};

#[test]
fn help_lists_the_commands_by_purpose_on_one_screen() {
    let Some(env) = TestEnv::new() else { return };
    for option in ["--help", "-h"] {
        let done = env.envfs(&[option]).ok();
        for purpose in [
            "start an environment",
            "see and save changes",
            "look after it",
        ] {
            assert!(done.out.contains(&format!("\n{purpose}\n   ")), "{done}");
        }
        let lines = done.out.lines().count();
        assert!(lines <= 55, "{lines} lines: {done}");
        let widest = done.out.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{widest:?}: {done}");
    }
}

/// Calls `check` with the help of each visible command.
fn each_help(command: &mut clap::Command, path: &str, check: &mut dyn FnMut(&str, &str)) {
    check(path, &command.render_help().to_string());
    check(path, &command.render_long_help().to_string());
    let visible = |below: &&mut clap::Command| !below.is_hide_set();
    for below in command.get_subcommands_mut().filter(visible) {
        let path = format!("{path} {}", below.get_name());
        each_help(below, &path, check);
    }
}

#[test]
fn no_help_shows_an_empty_default_or_another_system_of_units() {
    let mut root = envfs::cli::command();
    root.build();
    let mut helps = 0;
    each_help(&mut root, "envfs", &mut |path, help| {
        helps += 1;
        // This line is clap's.
        let help = help.replace("the given subcommand(s)", "");
        for bad in [
            "[default: \"\"]",
            "[default: ]",
            "(s)",
            " kB",
            " KB",
            " MB",
            " GB",
            "1 files",
        ] {
            assert!(!help.contains(bad), "{bad} in the help of {path}:\n{help}");
        }
    });
    assert!(helps > 80, "{helps}");
}

#[test]
fn verbs_of_other_tools_work_or_say_what_to_use() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    assert_eq!(
        env.envfs(&["history", "e"]).ok().out,
        env.envfs(&["log", "e"]).ok().out
    );
    env.envfs(&["delete", "-y", "e"]).ok();
    assert_eq!(env.count(&["list"]), 0);
    for (verb, instead) in [("config", "config.toml"), ("save", "envfs commit")] {
        env.envfs(&[verb, "e"]).fails(2, &[verb, instead]);
    }
    for near in ["shell", "serve", "complete", "daemon"] {
        let done = env.envfs(&[near]).fails(2, &[near]);
        assert!(!done.err.contains("__"), "{done}");
    }
}

#[test]
fn a_tag_is_set_in_the_order_of_rollback() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    env.write(&prefix.join("new"), "x");
    env.envfs(&["commit", "-q", "e"]).ok();
    env.envfs(&["tag", "e", "first", "1"]).ok();
    env.envfs(&["tag", "e", "again", "first"]).ok();
    env.envfs_with("ENVFS_ENV", "e", &["tag", "here", "1"]).ok();
    env.envfs(&["tag", "e", "last"]).ok();
    let tags = env.envfs(&["tag", "e"]).ok().out;
    let pairs: Vec<Vec<&str>> = tags
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        pairs,
        [["again", "1"], ["first", "1"], ["here", "1"], ["last", "2"]]
    );
    env.envfs(&["tag", "e", "x", "1", "--rev", "2"])
        .fails(2, &["two revisions"]);
    env.envfs(&["tag", "e", "x", "9"]).fails(3, &["9"]);
    env.envfs(&["tag", "-d", "e", "first", "1"])
        .fails(2, &["revision"]);
    env.envfs(&["rollback", "-q", "-y", "e", "first"]).ok();
}

#[test]
fn log_prints_local_time_and_json_has_utc() {
    let Some(env) = TestEnv::new() else { return };
    let source = env.work().join("e-source");
    env.write(&source.join("file"), "x");
    env.envfs(&["import", "-q", "e-source", "e"]).ok();
    let json = env.envfs(&["log", "--json", "e"]).ok().json();
    let seconds = json[0]["time"].as_i64().unwrap();
    if !has("date") {
        return;
    }
    let date = |zone: &str, format: &str| {
        let mut command = env.command("date");
        command
            .args(["-d", &format!("@{seconds}"), format])
            .env("TZ", zone);
        run(command).ok().line().to_owned()
    };
    assert_eq!(json[0]["date"], date("UTC", "+%Y-%m-%dT%H:%M:%SZ").as_str());
    // Without a database of zones: these are complete rules.
    for zone in ["UTC", "XXX-5:30", "YYY+3:15", "CET-1CEST,M3.5.0,M10.5.0/3"] {
        let shown = env.envfs_with("TZ", zone, &["log", "e"]).ok();
        let expected = date(zone, "+%Y-%m-%d %H:%M:%S %z");
        assert!(shown.out.contains(&expected), "{zone}: {expected}: {shown}");
    }
}
