//! `envfs paths`, `list` and `log` agree with the store.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::changed;

#[test]
fn list_paths_and_log_agree_with_the_store() {
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
