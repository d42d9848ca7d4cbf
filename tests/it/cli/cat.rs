//! `envfs cat`.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::diff_revisions::three_revisions;
use crate::support::samples;

#[test]
fn cat_prints_committed_content_exactly() {
    let Some(env) = three_revisions() else { return };
    let cat = |word: &str| env.envfs(&["cat", word]);
    assert_eq!(cat("e@1:lib/c.txt").ok().out, "gamma\n");
    assert_eq!(cat("e@before:lib/c.txt").ok().out, "gamma\n");
    assert_eq!(cat("e:lib/c.txt").ok().out, "gamma\ndelta\n");
    assert_eq!(cat("e@1:lib/link").ok().out, "alpha\nbeta\n");
    let absolute = format!("e@1:{}/lib/c.txt", env.prefix("e").display());
    assert_eq!(cat(&absolute).ok().out, "gamma\n");
    let active = env.envfs_with("ENVFS_ENV", "e", &["cat", "@1:lib/c.txt", ":new"]);
    assert_eq!(active.ok().out, "gamma\n12345");
    // 200,000 bytes that are not text, in two blocks.
    let binary = env.work().join("binary");
    env.sh(&format!(
        "envfs cat e@1:lib/deep/er/file > '{}'",
        binary.display()
    ))
    .ok();
    assert_eq!(fs::read(binary).unwrap(), samples::noise(200_000, 7));
    cat("e@2:lib/link").fails(3, &["revision 2 of e has no lib/link"]);
    cat("e:open").fails(3, &["has no open"]);
    cat("e:lib").fails(2, &["lib is a directory"]);
    cat("e@1").fails(2, &["no path", "NAME@REV:PATH"]);
    fs::write(env.prefix("e").join("lib/out"), "").unwrap();
    env.sh(&format!(
        "ln -s /etc/passwd '{0}/away'; ln -s round '{0}/round'",
        env.prefix("e").display()
    ))
    .ok();
    env.envfs(&["commit", "-q", "e"]).ok();
    cat("e:away").fails(3, &["away leads out of the environment, to /etc/passwd"]);
    cat("e:round").fails(3, &["leads out"]);
}
