#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::process::Command;
use std::sync::atomic::AtomicU32;

use super::*;

const HOLD_IN: &str = "ENVFS_TEST_HOLD_LOCK_IN";

fn home() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    (dir, layout)
}

fn exclusive(layout: &Layout) -> Result<EnvLock> {
    EnvLock::try_lock(layout, "test")
}

fn no_locks(_: &File) -> io::Result<()> {
    Err(nix::errno::Errno::ENOLCK.into())
}

fn leased(layout: &Layout) -> Attempt {
    EnvLock::attempt(layout, "lease", false, no_locks).unwrap()
}

/// As on a file system that hosts share, each of which has its own locks.
fn locked_by_this_host_alone(_: &File) -> io::Result<()> {
    Ok(())
}

#[test]
fn a_second_writer_is_told_who_the_first_is() {
    let (_dir, layout) = home();
    let first = EnvLock::try_lock(&layout, "committing").unwrap();
    let refused = exclusive(&layout).unwrap_err().to_string();
    let pid = std::process::id();
    assert!(refused.contains(&format!("process {pid} on ")), "{refused}");
    assert!(refused.contains("(committing)"), "{refused}");
    assert_eq!(
        EnvLock::current_holder(&layout).as_ref(),
        Some(first.holder())
    );
    drop(first);
    assert_eq!(EnvLock::current_holder(&layout), None);
    drop(exclusive(&layout).unwrap());
}

#[test]
fn a_patient_writer_gets_the_lock_when_it_is_free() {
    let (_dir, layout) = home();
    let first = exclusive(&layout).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| EnvLock::lock(&layout, "second", Duration::from_secs(60)));
        drop(first);
        assert_eq!(second.join().unwrap().unwrap().holder().purpose, "second");
    });
}

/// The other process of the next test; does nothing when run by itself.
#[test]
fn helper_that_holds_a_lock() {
    let Some(home) = std::env::var_os(HOLD_IN) else {
        return;
    };
    let layout = Layout::new(PathBuf::from(home));
    let _lock = EnvLock::try_lock(&layout, "elsewhere").unwrap();
    fs::write(layout.home().join("ready"), "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_lock_ends_with_its_process_however_that_dies() {
    let (_dir, layout) = home();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "environment::lock::tests::helper_that_holds_a_lock",
        ])
        .env(HOLD_IN, layout.home())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !layout.home().join("ready").exists() {
        assert!(
            other.try_wait().unwrap().is_none(),
            "the helper ended early"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = exclusive(&layout).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("process {} on ", other.id())),
        "{refused}"
    );
    assert!(refused.contains("(elsewhere)"), "{refused}");
    other.kill().unwrap();
    other.wait().unwrap();
    // Its name has stayed behind, but nobody believes it.
    assert!(layout.lock_holder().exists());
    assert_eq!(EnvLock::current_holder(&layout), None);
    drop(exclusive(&layout).unwrap());
    assert!(!layout.lock_holder().exists());
}

#[test]
fn a_lock_of_something_that_was_removed_is_no_lock() {
    let (dir, _) = home();
    let layout = Layout::new(dir.path().join("home"));
    fs::create_dir(layout.home()).unwrap();
    let lock = exclusive(&layout).unwrap();
    fs::remove_dir_all(layout.home()).unwrap();
    assert!(matches!(
        exclusive(&layout),
        Err(EnvironmentError::Io { .. })
    ));
    fs::create_dir(layout.home()).unwrap();
    drop(exclusive(&layout).unwrap());
    drop(lock);
}

#[test]
fn where_flock_does_not_work_a_lease_does() {
    let (_dir, layout) = home();
    let Attempt::Got(first) = leased(&layout) else {
        panic!("not held by anybody");
    };
    let Attempt::Held(Some(holder)) = leased(&layout) else {
        panic!("held by us");
    };
    assert_eq!(&holder, first.holder());
    drop(first);
    assert!(!layout.lease().exists());
    assert!(matches!(leased(&layout), Attempt::Got(_)));
    let left: Vec<_> = fs::read_dir(layout.home()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the lock file: {left:?}");
}

#[test]
fn where_every_host_has_its_own_flock_the_lease_decides() {
    let (_dir, layout) = home();
    let attempt = || EnvLock::attempt(&layout, "shared", true, locked_by_this_host_alone).unwrap();
    let Attempt::Got(first) = attempt() else {
        panic!("not held by anybody");
    };
    assert_eq!(
        EnvLock::current_holder(&layout).as_ref(),
        Some(first.holder())
    );
    let Attempt::Held(Some(holder)) = attempt() else {
        panic!("held by us");
    };
    assert_eq!(&holder, first.holder());
    drop(first);
    assert!(!layout.lease().exists());
    assert!(matches!(attempt(), Attempt::Got(_)));
}

fn leave_lease(layout: &Layout, change: impl FnOnce(&mut Holder)) {
    let mut holder = Holder::me(layout, "long ago").unwrap();
    change(&mut holder);
    fs::write(layout.lease(), serde_json::to_vec(&holder).unwrap()).unwrap();
}

#[test]
fn a_lease_of_a_dead_process_or_an_earlier_boot_is_free() {
    let (_dir, layout) = home();
    leave_lease(&layout, |holder| holder.pid = u32::MAX);
    assert!(matches!(leased(&layout), Attempt::Got(_)));
    leave_lease(&layout, |holder| holder.pid_start += 1);
    assert!(matches!(leased(&layout), Attempt::Got(_)));
    leave_lease(&layout, |holder| holder.boot_id = "another".to_owned());
    assert!(matches!(leased(&layout), Attempt::Got(_)));
    leave_lease(&layout, |_| {});
    assert!(matches!(leased(&layout), Attempt::Held(Some(_))));
}

fn age(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - 2 * LEASE).unwrap();
}

#[test]
fn a_lease_that_names_nobody_is_free_when_it_was_not_renewed() {
    let (_dir, layout) = home();
    // As a power failure, a full disk or a damaged server may leave it.
    let whole = serde_json::to_vec(&Holder::me(&layout, "x").unwrap()).unwrap();
    let half = &whole[..whole.len() / 2];
    for content in [&b""[..], b"garbage", half, &[0; 300], b"{}"] {
        fs::write(layout.lease(), content).unwrap();
        assert!(matches!(leased(&layout), Attempt::Held(None)));
        age(&layout.lease());
        let Attempt::Got(held) = leased(&layout) else {
            panic!("nobody holds it: {content:?}");
        };
        // The holder of one that was damaged later renews it, and removes it in the end.
        fs::write(layout.lease(), content).unwrap();
        age(&layout.lease());
        assert!(renew_note(&layout.lease(), &held.holder().token));
        assert!(matches!(leased(&layout), Attempt::Held(None)));
        drop(held);
        assert!(!layout.lease().exists());
    }
    // What is no file at all is not read, nor waited for.
    nix::unistd::mkfifo(&layout.lease(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(leased(&layout), Attempt::Held(None)));
    let old = nix::sys::time::TimeSpec::new(1_000_000_000, 0);
    let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &layout.lease(), &old, &old, follow).unwrap();
    assert!(matches!(leased(&layout), Attempt::Got(_)));
    let left: Vec<_> = fs::read_dir(layout.home()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the lock file: {left:?}");
}

#[test]
fn what_was_noted_about_a_home_is_not_about_a_copy_of_it() {
    let (_dir, layout) = home();
    let (_other, copy) = home();
    let held = exclusive(&layout).unwrap();
    fs::copy(layout.lock_holder(), copy.lock_holder()).unwrap();
    assert_eq!(EnvLock::current_holder(&copy), None);
    drop(exclusive(&copy).unwrap());
    drop(held);
    let Attempt::Got(held) = leased(&layout) else {
        panic!("not held by anybody");
    };
    fs::copy(layout.lease(), copy.lease()).unwrap();
    assert_eq!(EnvLock::current_holder(&copy), None);
    assert!(matches!(leased(&copy), Attempt::Got(_)));
    // A home that is moved is the same.
    let moved = Layout::new(layout.home().with_extension("moved"));
    fs::rename(layout.home(), moved.home()).unwrap();
    assert_eq!(
        EnvLock::current_holder(&moved).as_ref(),
        Some(held.holder())
    );
    held.moved_to(&moved);
    drop(held);
    fs::rename(moved.home(), layout.home()).unwrap();
}

#[test]
fn of_many_who_find_a_stale_lease_one_at_a_time_has_it() {
    let (_dir, layout) = home();
    let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
    for _ in 0..20 {
        leave_lease(&layout, |holder| holder.pid_start += 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if let Attempt::Got(lock) = leased(&layout) {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(matches!(leased(&layout), Attempt::Got(_)));
    }
    assert!(taken.load(Ordering::SeqCst) >= 20);
}

#[test]
fn a_lease_of_another_host_is_free_only_when_it_was_not_renewed() {
    let (_dir, layout) = home();
    leave_lease(&layout, |holder| holder.host = "elsewhere".to_owned());
    assert!(matches!(leased(&layout), Attempt::Held(Some(_))));
    let token = read_holder(&layout.lease()).unwrap().token;
    age(&layout.lease());
    assert!(renew_note(&layout.lease(), &token));
    assert!(matches!(leased(&layout), Attempt::Held(Some(_))));
    age(&layout.lease());
    assert!(!renew_note(&layout.lease(), "somebody else's"));
    assert!(matches!(leased(&layout), Attempt::Got(_)));
}
