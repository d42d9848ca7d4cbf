//! pjdfstest, a suite of POSIX calls: each of its tests must have the same result on a mount and on
//! ext4.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::installed;
use crate::fs::direct::{Direct, plain_directory};
use crate::support::{Run, TestEnv, find, run, skip_allowed};

/// The features of the file systems, users that exist on Debian, and no remounts.
const CONFIGURATION: &str = "\
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]
";

/// This test asks the C library for the maximum link count, which it knows for ext4 but not for
/// FUSE.
const UNKNOWN_LIMIT: &str = "link::link_count_max";

/// Returns the result of each test by name.
fn results(done: &Run) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for line in done.out.lines() {
        let line = plain_text(line);
        // "chmod::enotdir::fifo           ok"
        let mut words = line.split_whitespace();
        if let (Some(name), Some(how)) = (words.next(), words.next())
            && name.contains("::")
            && ["ok", "FAILED", "skipped"].contains(&how)
        {
            all.insert(name.to_owned(), how.to_owned());
        }
    }
    all
}

/// Removes colours.
fn plain_text(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or("").to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

/// How to run the suite.
struct Runner<'a> {
    env: &'a TestEnv,
    program: PathBuf,
    settings: PathBuf,
    /// A prefix of the command line.
    before: Vec<&'a str>,
}

impl Runner<'_> {
    fn run(&self, dir: &Path) -> BTreeMap<String, String> {
        // Created as the user, because root has no access to the mount of another user.
        let made = self
            .env
            .sh(&format!("mkdir '{0}'; chmod 755 '{0}'", dir.display()));
        made.ok();
        let mut words = self.before.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = self.env.command(first);
                command.args(words).arg(&self.program);
                command
            }
            None => self.env.command(&self.program),
        };
        command.arg("-c").arg(&self.settings).arg("-p").arg(dir);
        let done = run(command);
        let all = results(&done);
        assert!(all.len() > 300, "{done}");
        all
    }
}

/// Runs the suite on both and compares each test. Returns the number of tests by result.
fn compare(env: TestEnv, options: &str, before: &[&str]) -> Option<BTreeMap<String, usize>> {
    let program = installed("pjdfstest")?;
    // Other users may have no access to the directory of the suite.
    let copy = env.root().join("pjdfstest");
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let settings = env.root().join("pjdfstest.toml");
    fs::write(&settings, CONFIGURATION).unwrap();
    let plain = plain_directory(&env)?;
    let direct = Direct::empty(env, options)?;
    let runner = Runner {
        env: &direct.env,
        program: copy,
        settings,
        before: before.to_vec(),
    };
    let ours = runner.run(&direct.at().join("suite"));
    let theirs = runner.run(&plain.join("suite"));
    let mut differences = Vec::new();
    for (name, how) in &theirs {
        let our = ours.get(name).map_or("missing", String::as_str);
        if our != how && !(name == UNKNOWN_LIMIT && our == "skipped") {
            differences.push(format!("{name}: {our}, on ext4 {how}"));
        }
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let mut counts = BTreeMap::new();
    for how in ours.into_values() {
        *counts.entry(how).or_insert(0) += 1;
    }
    Some(counts)
}

#[test]
fn pjdfstest_as_root_matches_ext4() {
    let Some(env) = TestEnv::new() else { return };
    if !env.user().is_root() {
        return skip_allowed("needs root");
    }
    if let Some(counts) = compare(env, "allow_other", &[]) {
        assert_eq!(counts.get("FAILED"), None, "{counts:?}");
        assert!(counts.get("ok") >= Some(&370), "{counts:?}");
    }
}

#[test]
fn pjdfstest_as_an_ordinary_user_matches_ext4() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    compare(env, "", &[]);
}

#[test]
fn pjdfstest_in_a_user_namespace_matches_ext4() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    if find("unshare").is_none() {
        return skip_allowed("no unshare");
    }
    let mut probe = env.command("unshare");
    probe.args(["-Ur", "true"]);
    if run(probe).code != 0 {
        return skip_allowed("no user namespaces");
    }
    compare(env, "", &["unshare", "-Ur"]);
}
