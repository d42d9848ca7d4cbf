//! `envfs stats`.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::support::TestEnv;

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
