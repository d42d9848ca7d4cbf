//! `envfs show`.

#![allow(clippy::unwrap_used)]

use super::diff_revisions::{FROM_1_TO_2, three_revisions};

#[test]
fn show_describes_a_revision_and_what_it_changed() {
    let Some(env) = three_revisions() else { return };
    let shown = env.envfs(&["show", "e", "2"]).ok();
    for part in [
        "revision 2\n    second\n",
        "  kind      commit\n",
        "  command   ",
        "commit -q e -m second\n",
        "  parent    1\n",
        "  image     ",
        "    renamed         1",
    ] {
        assert!(shown.out.contains(part), "no {part:?}: {shown}");
    }
    assert!(shown.out.ends_with(FROM_1_TO_2), "{shown}");
    let current = env.envfs(&["show", "e"]).ok();
    assert!(
        current.out.starts_with("revision 3  (current)"),
        "{current}"
    );
    let first = env.envfs(&["show", "e@before", "--json"]).ok().json();
    assert_eq!(first["tags"][0], "before");
    assert_eq!(first["changes"], serde_json::Value::Null);
    let third = env.envfs(&["show", "e", "3", "--json"]).ok().json();
    assert_eq!(third["summary"]["added"]["entries"], 1);
    assert_eq!(third["changes"][0]["path"], "third");
    assert!(
        third["image"]["disk_bytes"].as_u64().unwrap() > 0,
        "{third}"
    );
    env.envfs(&["show", "e", "nosuch"])
        .fails(3, &["no revision nosuch"]);
    // A removed parent leaves the rest.
    env.envfs(&["tag", "e", "-d", "before"]).ok();
    env.envfs(&["gc", "e", "--keep", "2"]).ok();
    let shown = env.envfs(&["show", "e", "2"]).ok();
    let end = shown.out.lines().last().unwrap();
    assert!(end.starts_with("  on disk"), "{shown}");
    assert!(
        shown.out.contains("parent    1, which gc removed"),
        "{shown}"
    );
}
