//! `envfs log`.

use super::diff_revisions::three_revisions;

#[test]
fn log_is_newest_first_and_limited() {
    let Some(env) = three_revisions() else { return };
    let numbers = |words: &[&str]| -> Vec<i64> {
        let log = env.envfs(&[&["log", "--json", "e"], words].concat());
        let log = log.ok().json();
        let rows = log.as_array().unwrap().iter();
        rows.map(|row| row["revision"].as_i64().unwrap()).collect()
    };
    assert_eq!(numbers(&[]), [3, 2, 1]);
    assert_eq!(numbers(&["-n", "2"]), [3, 2]);
    assert_eq!(numbers(&["-n", "0"]), [0_i64; 0]);
    let log = env.envfs(&["log", "--json", "e"]).ok().json();
    let marks: Vec<_> = (0..3).map(|at| log[at]["current"] == true).collect();
    assert_eq!(marks, [true, false, false]);
    assert_eq!(log[0]["parent"], 2);
    assert!(log[2]["image_bytes"].as_u64().unwrap() > 0);
    let text = env.envfs(&["log", "e"]).ok();
    assert!(text.out.starts_with("*    3  "), "{text}");
    assert_eq!(text.err, "");
    env.envfs(&["log", "nosuch"]).fails(3, &["nosuch"]);
    env.envfs(&["log", "-n", "x", "e"]).fails(2, &["x"]);
}
