//! Sessions of two hosts that share a store: every pair of kinds, in both orders, with kills.
//!
//! A host is a UTS and a mount namespace with a name, a boot and sockets of its own. The hosts
//! share one directory, or each mounts it through a FUSE file system whose locks and caches are its
//! own, as those of a network file system may be.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::other_hosts::WITHOUT_MOUNTS;
use crate::support::{Run, TestEnv, User, finish, has, is_alive, run, skip_allowed, wait_for};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Writable,
    ReadOnly,
    Ephemeral,
    Revision,
    Try,
    Private,
    PrivateWritable,
    PrivateEphemeral,
}

use Kind::{
    Ephemeral, Private, PrivateEphemeral, PrivateWritable, ReadOnly, Revision, Try, Writable,
};

impl Kind {
    /// The kinds of each pair; with `ENVFS_HOST_PAIRS=all` also those that differ from another only
    /// in the place of the mount.
    fn all() -> Vec<Kind> {
        let mut all = vec![Writable, ReadOnly, Ephemeral, Revision, Try, Private];
        if std::env::var_os("ENVFS_HOST_PAIRS").is_some_and(|word| word == "all") {
            all.extend([PrivateWritable, PrivateEphemeral]);
        }
        all
    }

    /// Returns the command line of envfs that runs a shell in such a session.
    fn words(self) -> &'static [&'static str] {
        match self {
            Writable => &["run", "e", "sh"],
            ReadOnly => &["run", "--read-only", "e", "sh"],
            Ephemeral => &["run", "--ephemeral", "e", "sh"],
            Revision => &["run", "e@1", "sh"],
            Try => &["try", "--keep-on-success", "e", "--", "sh"],
            Private => &["run", "--private", "--read-only", "e", "sh"],
            PrivateWritable => &["run", "--private", "--writable", "e", "sh"],
            PrivateEphemeral => &["run", "--private", "--ephemeral", "e", "sh"],
        }
    }

    fn is_writable(self) -> bool {
        matches!(self, Writable | PrivateWritable)
    }

    /// Returns whether programs in it can write.
    fn accepts_changes(self) -> bool {
        !matches!(self, ReadOnly | Revision | Private)
    }

    /// Returns whether such a session cannot begin while another host has this one.
    fn is_refused_beside(self, other: Kind) -> bool {
        other.is_writable() && (self.is_writable() || self == Try)
    }

    /// Returns what a new session shows; the environment has these changes besides `mine`.
    fn sees(self, changes: &[&str]) -> Vec<String> {
        let names: Vec<&str> = match self {
            Revision => Vec::new(),
            ReadOnly | Ephemeral | Private | PrivateEphemeral => vec!["two"],
            Writable | Try | PrivateWritable => [&["two", "mine"], changes].concat(),
        };
        names.into_iter().map(str::to_owned).collect()
    }
}

/// A store that two hosts can mount, with an environment `e` of two revisions and a change.
struct Shared {
    env: TestEnv,
    /// The directory behind the store of each host, if each mounts one.
    behind: Option<PathBuf>,
}

impl Shared {
    fn new(is_fuse: bool) -> Option<Shared> {
        if !User::current().is_root() {
            skip_allowed("another host name needs root");
            return None;
        }
        let programs = ["unshare", "nsenter", "bindfs"];
        if !programs[..2 + usize::from(is_fuse)]
            .iter()
            .all(|program| has(program))
        {
            return None;
        }
        let env = TestEnv::new()?;
        let behind = is_fuse.then(|| env.root().join("server"));
        if let Some(behind) = &behind {
            fs::create_dir(behind).unwrap();
            fs::create_dir(env.store()).unwrap();
        }
        Some(Shared { env, behind })
    }

    fn fill(&self, host: &Host<'_>) {
        let source = self.env.work().join("source");
        crate::support::samples::small(&self.env, &source);
        host.envfs(&["import", "-q", source.to_str().unwrap(), "e"])
            .ok();
        let change = |name: &str| {
            let script = format!("echo {name} >\"$ENVFS_PREFIX/{name}\"");
            host.envfs(&["run", "e", "sh", "-c", &script]).ok();
        };
        change("two");
        host.envfs(&["commit", "-q", "e"]).ok();
        change("mine");
        host.envfs(&["unmount", "e"]).ok();
    }

    /// Returns the home of the environment, past the caches of the hosts.
    fn home(&self) -> PathBuf {
        let store = self.behind.as_deref().unwrap_or(self.env.store());
        store.join("store/e")
    }

    /// Makes the leases that no process renews any more as old as they are after some minutes.
    fn let_leases_expire(&self) {
        let entries = walkdir::WalkDir::new(self.home()).into_iter().flatten();
        for lease in entries.filter(|entry| entry.file_name() == "lock.lease") {
            let file = fs::File::options().write(true).open(lease.path()).unwrap();
            let old = SystemTime::now() - Duration::from_secs(3600);
            file.set_modified(old).unwrap();
        }
        // Longer than a host keeps attributes.
        std::thread::sleep(Duration::from_millis(1100));
    }
}

/// A host, as long as its first process runs.
struct Host<'a> {
    env: &'a TestEnv,
    name: &'static str,
    first: RefCell<Child>,
}

impl<'a> Host<'a> {
    fn boot(shared: &'a Shared, name: &'static str) -> Host<'a> {
        let env = &shared.env;
        let boot = env.work().join(format!("boot-{name}"));
        fs::write(&boot, format!("{name}\n")).unwrap();
        let run = env.work().join(format!("run-{name}"));
        fs::create_dir_all(&run).unwrap();
        fs::set_permissions(&run, PermissionsExt::from_mode(0o700)).unwrap();
        let mut setup = format!(
            "{WITHOUT_MOUNTS}hostname {name}; mount --bind '{}' /proc/sys/kernel/random/boot_id;",
            boot.display()
        );
        if let Some(behind) = &shared.behind {
            let options = "attr_timeout=1,entry_timeout=1,negative_timeout=1";
            setup += &format!(
                "bindfs -o {options} '{}' '{}' >/dev/null;",
                behind.display(),
                env.store().display()
            );
        }
        setup += "echo ready; exec cat >/dev/null";
        let mut command = env.command("unshare");
        command
            .args(["--uts", "--mount", "sh", "-ec", &setup])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut first = command.spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(first.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{name}");
        Host {
            env,
            name,
            first: first.into(),
        }
    }

    /// Returns a command on this host.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.env.command("nsenter");
        let target = format!("--target={}", self.first.borrow().id());
        let dir = format!("--chdir={}", self.env.work().display());
        command
            .args([&target, "--uts", "--mount", "--", "env", &dir])
            .args(words)
            .env(
                "XDG_RUNTIME_DIR",
                self.env.work().join(format!("run-{}", self.name)),
            );
        command
    }

    fn envfs(&self, words: &[&str]) -> Run {
        run(self.command(&[&["envfs"], words].concat()))
    }

    /// Returns the processes on this host that a power failure would end; its first process and the
    /// file system stay, as the host is used again.
    fn processes(&self) -> Vec<Pid> {
        let first = self.first.borrow().id();
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/uts")).ok();
        let own = namespace(&first.to_string());
        assert!(own.is_some());
        let names = fs::read_dir("/proc").unwrap().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let found = names.filter(|pid| pid.parse::<u32>().is_ok() && namespace(pid) == own);
        let is_envfs = |pid: &String| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            *pid != first.to_string() && name.trim() != "bindfs"
        };
        let pids = found.filter(is_envfs).map(|pid| pid.parse().unwrap());
        pids.map(Pid::from_raw).collect()
    }

    /// Kills everything, daemons and programs.
    fn kill(&self) {
        loop {
            let pids = self.processes();
            if pids.is_empty() {
                return;
            }
            for pid in &pids {
                kill(*pid, Signal::SIGKILL).ok();
            }
            wait_for("the end of a host", || {
                pids.iter().all(|pid| !is_alive(*pid))
            });
        }
    }

    fn session(&self, kind: Kind) -> Result<Session<'_>, Run> {
        let mut command = self.command(&[&["envfs"], kind.words()].concat());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut session = Session {
            host: self,
            kind,
            child,
            out,
        };
        match session.ask("true") {
            Some(_) => Ok(session),
            None => Err(finish(session.child, format!("{kind:?} on {}", self.name))),
        }
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid, Signal::SIGKILL).ok();
        }
        let first = self.first.get_mut();
        drop(first.stdin.take());
        first.wait().ok();
        // The mounts have ended with the last process in the namespace, and with them bindfs.
    }
}

/// A shell in a session.
struct Session<'a> {
    host: &'a Host<'a>,
    kind: Kind,
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Session<'_> {
    /// Runs a script in the session and returns its output; `None` if the shell has ended.
    fn ask(&mut self, script: &str) -> Option<String> {
        let input = self.child.stdin.as_mut().unwrap();
        // It may have ended.
        drop(input.write_all(format!("( {script} ) 2>&1 </dev/null; echo END\n").as_bytes()));
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if self.out.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if line == "END\n" {
                return Some(said);
            }
            said += &line;
        }
    }

    /// Returns what it shows of the files that the test makes, by their content.
    fn seen(&mut self) -> Vec<String> {
        let script = "cd \"$ENVFS_PREFIX\"; cat lib/c.txt; \
                      for name in two mine by-alpha by-beta; do test ! -e $name || cat $name; done";
        let said = self.ask(script).unwrap();
        let mut lines = said.lines().map(str::to_owned);
        assert_eq!(lines.next().as_deref(), Some("gamma"), "{said}");
        lines.collect()
    }

    /// Changes something, or finds that nothing can be changed. Returns what it shows afterwards.
    fn change(&mut self) -> Vec<String> {
        let mut expected = self.seen();
        let name = format!("by-{}", self.host.name);
        let said = self.ask(&format!(
            "echo {name} >\"$ENVFS_PREFIX/{name}\" && echo done"
        ));
        let said = said.unwrap();
        match self.kind.accepts_changes() {
            true => {
                assert_eq!(said, "done\n");
                expected.retain(|other| *other != name);
                expected.push(name);
                expected.sort_by_key(|name| match &**name {
                    "two" => 0,
                    "mine" => 1,
                    "by-alpha" => 2,
                    _ => 3,
                });
            }
            false => assert!(said.contains("Read-only file system"), "{said}"),
        }
        assert_eq!(self.seen(), expected, "{:?}", self.kind);
        expected
    }

    /// Ends the session. A try keeps its changes if that is possible.
    fn end(mut self) -> Run {
        drop(self.child.stdin.take());
        let done = finish(self.child, format!("{:?}", self.kind));
        if matches!(self.kind, Writable | ReadOnly | Revision | PrivateWritable) {
            self.host.envfs(&["unmount", "e"]).ok();
        }
        done
    }
}

/// Begins a session beside one of another host, and checks that it is refused where it must be.
fn begin_beside<'a>(host: &'a Host<'a>, kind: Kind, other: &Session<'_>) -> Option<Session<'a>> {
    let begun = host.session(kind);
    if !kind.is_refused_beside(other.kind) {
        return Some(
            begun.unwrap_or_else(|refused| panic!("{kind:?} beside {:?}: {refused}", other.kind)),
        );
    }
    let Err(refused) = begun else {
        panic!("{kind:?} began beside {:?}", other.kind);
    };
    let on = format!("on {}", other.host.name);
    refused.fails(
        125,
        &["in use for writing", &on, "--read-only", "--ephemeral"],
    );
    None
}

/// One pair: `first` begins on a host, then `second` on the other.
fn pair(shared: &Shared, first: Kind, second: Kind) {
    let [alpha, beta] = ["alpha", "beta"].map(|name| Host::boot(shared, name));
    let mut a = alpha
        .session(first)
        .unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(a.seen(), first.sees(&[]));
    let mut of_a = a.change();
    let Some(mut b) = begin_beside(&beta, second, &a) else {
        writer_moves(shared, &alpha, &beta, second, a);
        return end(&beta);
    };
    // What a session writes is seen by it alone, or by what begins later.
    let changes = match first.is_writable() {
        true => &["by-alpha"][..],
        false => &[],
    };
    assert_eq!(b.seen(), second.sees(changes), "{first:?} {second:?}");
    let of_b = b.change();
    assert_eq!(a.seen(), of_a);
    // Each survives that the other host loses its power, which can begin its session again.
    beta.kill();
    drop(b);
    assert_eq!(a.seen(), of_a);
    of_a = a.change();
    let mut b = begin_beside(&beta, second, &a).unwrap();
    match second.is_writable() {
        true => assert_eq!(b.seen(), of_b, "what was changed before the kill is kept"),
        false => assert_eq!(b.seen(), second.sees(changes), "{first:?} {second:?}"),
    }
    let of_b = b.change();
    assert_eq!(a.seen(), of_a);
    alpha.kill();
    drop(a);
    assert_eq!(b.seen(), of_b);
    let a = begin_beside(&alpha, first, &b);
    assert_eq!(b.seen(), of_b);
    if let Some(mut a) = a {
        if first.is_writable() {
            assert_eq!(a.seen(), of_a, "what was changed before the kill is kept");
        }
        a.change();
        assert_eq!(b.seen(), of_b);
        a.end().ok();
    }
    b.end();
    // The environment has changed only if one of them could change it.
    let can_change = |kind: Kind| kind.is_writable() || kind == Try;
    if can_change(first) || can_change(second) {
        end(&beta);
    }
}

/// A writer on alpha keeps another one on beta away, which takes over when alpha has lost its
/// power: at once if the locks of the file system tell, else when the lease has expired.
fn writer_moves(
    shared: &Shared,
    alpha: &Host<'_>,
    beta: &Host<'_>,
    second: Kind,
    mut a: Session<'_>,
) {
    let of_a = a.change();
    alpha.kill();
    if shared.behind.is_some() {
        let Err(refused) = beta.session(second) else {
            panic!("{second:?} began before the lease of the dead host had expired");
        };
        refused.fails(125, &["in use for writing", "on alpha"]);
        shared.let_leases_expire();
    }
    drop(a);
    let mut b = beta
        .session(second)
        .unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(b.seen(), of_a, "what was changed before the kill is kept");
    b.change();
    if second.is_writable() {
        let back = alpha.envfs(&["mount", "--writable", "e"]);
        back.fails(5, &["in use for writing", "on beta"]);
    }
    b.end().ok();
}

/// Checks the environment when all sessions have ended, and removes what they have changed.
fn end(host: &Host<'_>) {
    let script = "cd \"$ENVFS_PREFIX\"; cat two mine lib/c.txt; rm -f by-alpha by-beta";
    host.envfs(&["run", "e", "sh", "-ec", script]).ok();
    host.envfs(&["unmount", "e"]).ok();
}

fn check_all_pairs(is_fuse: bool) {
    let Some(shared) = Shared::new(is_fuse) else {
        return;
    };
    shared.fill(&Host::boot(&shared, "alpha"));
    for first in Kind::all() {
        for second in Kind::all() {
            pair(&shared, first, second);
        }
    }
    let host = Host::boot(&shared, "alpha");
    // The other host was killed, so its notes last for some minutes.
    shared.let_leases_expire();
    host.envfs(&["gc", "-q", "e"]).ok();
    host.envfs(&["verify", "e"]).ok();
}

#[test]
fn every_pair_of_sessions_of_two_hosts_on_one_directory() {
    check_all_pairs(false);
}

#[test]
fn every_pair_of_sessions_of_two_hosts_on_a_file_system_with_locks_of_its_own() {
    check_all_pairs(true);
}

#[test]
fn a_try_is_not_lost_if_another_host_mounts_the_environment_meanwhile() {
    for is_fuse in [false, true] {
        let Some(shared) = Shared::new(is_fuse) else {
            return;
        };
        let [alpha, beta] = ["alpha", "beta"].map(|name| Host::boot(&shared, name));
        shared.fill(&alpha);
        let mut a = alpha.session(Try).unwrap();
        let tried = a.change();
        let b = beta.session(Writable).unwrap();
        a.end().fails(
            125,
            &[
                "in use for writing",
                "on beta",
                "nothing is lost",
                "envfs undo --operation",
            ],
        );
        let kinds = |host: &Host<'_>| {
            let log = host.envfs(&["log", "--all", "--json", "e"]).ok().json();
            let rows = log.as_array().unwrap().iter();
            let rows: Vec<_> = rows
                .map(|row| (row["kind"].clone(), row["operation"].clone()))
                .collect();
            rows
        };
        b.end().ok();
        let mut again = alpha.session(Writable).unwrap();
        assert_eq!(again.seen(), Writable.sees(&[]));
        let found = kinds(&alpha);
        assert_eq!(found[0].0, "set-aside", "{found:?}");
        let operation = found[0].1.to_string();
        alpha
            .envfs(&["undo", "-q", "--operation", &operation, "e"])
            .ok();
        assert_eq!(again.seen(), tried);
        again.end().ok();
        alpha.envfs(&["verify", "e"]).ok();
    }
}

/// Its daemon stands still, as on a host that was suspended, until another host has taken over.
#[test]
fn a_writer_that_another_host_has_replaced_changes_nothing_any_more() {
    let Some(shared) = Shared::new(true) else {
        return;
    };
    let [alpha, beta] = ["alpha", "beta"].map(|name| Host::boot(&shared, name));
    shared.fill(&alpha);
    let mut mount = alpha.command(&["envfs", "mount", "e"]);
    mount.env("ENVFS_FAULT", "lease.renewed-often");
    run(mount).ok();
    let mut a = alpha.session(Writable).unwrap();
    let of_a = a.change();
    let rows = alpha.envfs(&["ps", "--json", "e"]).ok().json();
    let daemon = Pid::from_raw(rows[0]["pid"].as_i64().unwrap().try_into().unwrap());
    kill(daemon, Signal::SIGSTOP).unwrap();
    shared.let_leases_expire();
    let mut b = beta.session(Writable).unwrap();
    assert_eq!(b.seen(), of_a);
    let of_b = b.change();
    kill(daemon, Signal::SIGCONT).unwrap();
    wait_for("the daemon to notice", || {
        alpha
            .envfs(&["commit", "-q", "e"])
            .err
            .contains("not renewed in time")
    });
    for change in [
        "echo x >\"$ENVFS_PREFIX/x\"",
        "rm \"$ENVFS_PREFIX/two\"",
        "mkdir \"$ENVFS_PREFIX/d\"",
    ] {
        let said = a.ask(change).unwrap();
        assert!(said.contains("Input/output error"), "{change}: {said}");
    }
    assert_eq!(b.seen(), of_b);
    a.end();
    assert_eq!(b.seen(), of_b);
    b.end().ok();
    beta.envfs(&["verify", "e"]).ok();
}
