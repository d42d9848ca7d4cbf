//! pjdfstest, the suite of POSIX calls: each of its tests ends on a mount as it ends on ext4.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::installed;
use crate::fs::direct::{Direct, plain_directory};
use crate::support::{Run, TestEnv, find, run, skip_allowed};

/// What the file systems have (posix_fallocate and so on), users that Debian has, and no remounts.
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

/// It asks the C library how many links a file may have, which knows that of ext4 by the file system's
/// type, and nothing of any FUSE file system.
const UNKNOWN_LIMIT: &str = "link::link_count_max";

/// How each test ended, by name.
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

/// Takes colours away.
fn plain_text(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or("").to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

/// Where one run is to be done, and as whom.
struct Place<'a> {
    env: &'a TestEnv,
    program: PathBuf,
    settings: PathBuf,
    /// What stands before the command line, if anything.
    before: Vec<&'a str>,
}

impl Place<'_> {
    fn run(&self, dir: &Path) -> BTreeMap<String, String> {
        // Made by the user: root need not have access to the mount of another.
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

/// Runs it on both; returns how often which end, after comparing test by test.
fn compare(env: TestEnv, options: &str, before: &[&str]) -> Option<BTreeMap<String, usize>> {
    let program = installed("pjdfstest")?;
    // The place where it was installed need not be open to others.
    let copy = env.root().join("pjdfstest");
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    let settings = env.root().join("pjdfstest.toml");
    fs::write(&settings, CONFIGURATION).unwrap();
    let plain = plain_directory(&env)?;
    let direct = Direct::empty(env, options)?;
    let place = Place {
        env: &direct.env,
        program: copy,
        settings,
        before: before.to_vec(),
    };
    let ours = place.run(&direct.at().join("suite"));
    let theirs = place.run(&plain.join("suite"));
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
fn pjdfstest_as_root_passes_as_on_ext4() {
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
fn pjdfstest_as_an_ordinary_user_ends_as_on_ext4() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    compare(env, "", &[]);
}

#[test]
fn pjdfstest_in_a_user_namespace_ends_as_on_ext4() {
    let Some(env) = TestEnv::as_tester() else {
        return;
    };
    if find("unshare").is_none() {
        return skip_allowed("no unshare");
    }
    let mut probe = env.command("unshare");
    probe.args(["-Ur", "true"]);
    if run(probe).code != 0 {
        return skip_allowed("no user namespaces here");
    }
    compare(env, "", &["unshare", "-Ur"]);
}
