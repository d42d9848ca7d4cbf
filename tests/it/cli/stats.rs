//! `envfs stats`.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::{TestEnv, skip_allowed};

#[test]
fn stats_count_requests_bytes_and_latencies() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let prefix = env.mount("e");
    let content = fs::read(prefix.join("lib/c.txt")).unwrap();
    fs::write(prefix.join("new"), [b'x'; 5000]).unwrap();
    assert!(!prefix.join("nowhere").exists());
    let stats = env.envfs(&["stats", "--json", "e"]).ok().json();
    assert_eq!(stats["read_bytes"], content.len(), "{stats}");
    assert_eq!(stats["written_bytes"], 5000, "{stats}");
    // `lib`, `c.txt` and two names that do not exist.
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
    for word in ["lookup", "make", "median", "written by programs"] {
        assert!(told.out.contains(word), "{word}: {told}");
    }
    env.envfs(&["unmount", "e"]).ok();
    assert_eq!(env.envfs(&["stats", "e"]).code, 3);
}

/// Returns the processor time of a process in clock ticks.
fn ticks(pid: nix::unistd::Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Sends many requests that come close together.
fn hurry(env: &TestEnv, prefix: &std::path::Path, round: u32) {
    let prefix = prefix.display();
    env.sh(&format!(
        "i=0; while [ $i -lt 2000 ]; do [ ! -e {prefix}/missing-{round}-$i ]; i=$((i+1)); done"
    ))
    .ok();
}

fn polling(env: &TestEnv) -> serde_json::Value {
    env.envfs(&["stats", "--json", "e"]).ok().json()["polling"].clone()
}

#[test]
fn a_mount_polls_while_requests_hurry_and_sleeps_when_they_end() {
    for env in TestEnv::of_all_users() {
        env.import_sample("e");
        let prefix = env.mount("e");
        let mut last = polling(&env);
        assert_eq!(last["poll"], "auto");
        for round in 0..10 {
            hurry(&env, &prefix, round);
            last = polling(&env);
            if last["found"].as_u64().unwrap() > 0 {
                break;
            }
        }
        let processors = std::thread::available_parallelism().unwrap().get();
        if processors == 1 {
            assert_eq!(last["polls"], 0, "{last}");
        } else if last["found"] == 0 {
            skip_allowed("other programs use the processors, so that the mount did not poll");
        } else {
            assert!(last["total_us"].as_f64().unwrap() > 0.0, "{last}");
            let told = env.envfs(&["stats", "e"]).ok();
            assert!(told.out.contains("found a request"), "{told}");
        }
        // Without requests nothing polls and no time passes on a processor: at most the tick in
        // which the command before was answered.
        let daemon = env.daemon("e");
        let before = (polling(&env)["polls"].clone(), ticks(daemon));
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let used = ticks(daemon) - before.1;
        assert!(used <= 2, "{used} ticks");
        assert_eq!(polling(&env)["polls"], before.0);
        env.envfs(&["unmount", "e"]).ok();
    }
}

#[test]
fn a_mount_does_not_poll_if_it_is_configured_not_to() {
    let Some(env) = TestEnv::new() else { return };
    env.import_sample("e");
    let config = env.store().join("config.toml");
    env.write(&config, "[daemon]\npoll = \"off\"\n");
    let prefix = env.mount("e");
    hurry(&env, &prefix, 0);
    let off = polling(&env);
    assert_eq!((&off["poll"], &off["polls"]), (&"off".into(), &0.into()));
    let told = env.envfs(&["stats", "e"]).ok();
    let line = told.out.lines().find(|line| line.starts_with("polling"));
    assert_eq!(line.unwrap().split_whitespace().last(), Some("off"));
    env.envfs(&["unmount", "e"]).ok();

    env.write(&config, "[daemon]\npoll = 250\n");
    env.mount("e");
    assert_eq!(polling(&env)["poll"], 250);
    env.envfs(&["unmount", "e"]).ok();

    env.write(&config, "[daemon]\npoll = \"always\"\n");
    env.envfs(&["mount", "e"])
        .fails(2, &["config.toml", "poll", "microseconds"]);
}
