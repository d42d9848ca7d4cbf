#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::time::SystemTime;

use super::note::*;
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

fn unsupported_flock(_: &File) -> io::Result<()> {
    Err(nix::errno::Errno::ENOLCK.into())
}

fn leased(layout: &Layout) -> Attempt {
    EnvLock::attempt(layout, "lease", Reach::ThisHost, unsupported_flock).unwrap()
}

/// Behaves like `flock` on a shared file system where locks are local to each host.
fn host_local_flock(_: &File) -> io::Result<()> {
    Ok(())
}

#[test]
fn the_error_names_the_holder() {
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
fn a_waiting_process_gets_the_lock_when_it_is_released() {
    let (_dir, layout) = home();
    let first = exclusive(&layout).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| EnvLock::lock(&layout, "second", Duration::from_secs(60)));
        drop(first);
        assert_eq!(second.join().unwrap().unwrap().holder().purpose, "second");
    });
}

/// The second process of the next test. Does nothing when run as a test of its own.
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
fn a_lock_is_released_when_its_process_is_killed() {
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
    // The note is still there, but is known to be stale.
    assert!(layout.lock_holder().exists());
    assert_eq!(EnvLock::current_holder(&layout), None);
    drop(exclusive(&layout).unwrap());
    assert!(!layout.lock_holder().exists());
}

#[test]
fn the_lock_of_a_removed_home_does_not_lock_a_new_one() {
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
fn a_lease_is_the_lock_where_flock_is_unsupported() {
    let (_dir, layout) = home();
    let Attempt::Acquired(first) = leased(&layout) else {
        panic!("the lock is free");
    };
    let Attempt::Held(Some(holder)) = leased(&layout) else {
        panic!("this process holds the lock");
    };
    assert_eq!(&holder, first.holder());
    drop(first);
    assert!(!layout.lease().exists());
    assert!(matches!(leased(&layout), Attempt::Acquired(_)));
    let left: Vec<_> = fs::read_dir(layout.home()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the lock file: {left:?}");
}

#[test]
fn the_lease_decides_where_flock_is_local_to_each_host() {
    let (_dir, layout) = home();
    let attempt =
        || EnvLock::attempt(&layout, "shared", Reach::OtherHosts, host_local_flock).unwrap();
    let Attempt::Acquired(first) = attempt() else {
        panic!("the lock is free");
    };
    assert_eq!(
        EnvLock::current_holder(&layout).as_ref(),
        Some(first.holder())
    );
    let Attempt::Held(Some(holder)) = attempt() else {
        panic!("this process holds the lock");
    };
    assert_eq!(&holder, first.holder());
    drop(first);
    assert!(!layout.lease().exists());
    assert!(matches!(attempt(), Attempt::Acquired(_)));
}

fn write_lease(layout: &Layout, change: impl FnOnce(&mut Holder)) {
    let mut holder = Holder::current_process(layout, "long ago").unwrap();
    change(&mut holder);
    fs::write(layout.lease(), serde_json::to_vec(&holder).unwrap()).unwrap();
}

#[test]
fn a_lease_of_a_dead_process_or_an_earlier_boot_is_free() {
    let (_dir, layout) = home();
    write_lease(&layout, |holder| holder.process.pid = u32::MAX);
    assert!(matches!(leased(&layout), Attempt::Acquired(_)));
    write_lease(&layout, |holder| holder.process.pid_start += 1);
    assert!(matches!(leased(&layout), Attempt::Acquired(_)));
    write_lease(&layout, |holder| {
        holder.process.boot_id = "another".to_owned()
    });
    assert!(matches!(leased(&layout), Attempt::Acquired(_)));
    write_lease(&layout, |_| {});
    assert!(matches!(leased(&layout), Attempt::Held(Some(_))));
}

fn age(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - 2 * LEASE).unwrap();
}

#[test]
fn an_unreadable_lease_is_free_when_it_has_expired() {
    let (_dir, layout) = home();
    // As a power failure, a full disk or a damaged server may leave it.
    let whole = serde_json::to_vec(&Holder::current_process(&layout, "x").unwrap()).unwrap();
    let half = &whole[..whole.len() / 2];
    for content in [&b""[..], b"garbage", half, &[0; 300], b"{}"] {
        fs::write(layout.lease(), content).unwrap();
        assert!(matches!(leased(&layout), Attempt::Held(None)));
        age(&layout.lease());
        let Attempt::Acquired(held) = leased(&layout) else {
            panic!("the lock is free: {content:?}");
        };
        // If a lease is damaged while it is held, its holder still renews and removes it.
        fs::write(layout.lease(), content).unwrap();
        age(&layout.lease());
        assert!(renew_note(&layout.lease(), &held.holder().token));
        assert!(matches!(leased(&layout), Attempt::Held(None)));
        drop(held);
        assert!(!layout.lease().exists());
    }
    // A FIFO is not read, so nothing blocks on it.
    nix::unistd::mkfifo(&layout.lease(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(leased(&layout), Attempt::Held(None)));
    let old = nix::sys::time::TimeSpec::new(1_000_000_000, 0);
    let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &layout.lease(), &old, &old, follow).unwrap();
    assert!(matches!(leased(&layout), Attempt::Acquired(_)));
    let left: Vec<_> = fs::read_dir(layout.home()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the lock file: {left:?}");
}

#[test]
fn a_note_copied_with_its_home_does_not_lock_the_copy() {
    let (_dir, layout) = home();
    let (_other, copy) = home();
    let held = exclusive(&layout).unwrap();
    fs::copy(layout.lock_holder(), copy.lock_holder()).unwrap();
    assert_eq!(EnvLock::current_holder(&copy), None);
    drop(exclusive(&copy).unwrap());
    drop(held);
    let Attempt::Acquired(held) = leased(&layout) else {
        panic!("the lock is free");
    };
    fs::copy(layout.lease(), copy.lease()).unwrap();
    assert_eq!(EnvLock::current_holder(&copy), None);
    assert!(matches!(leased(&copy), Attempt::Acquired(_)));
    // A home that was moved is still locked.
    let moved = Layout::new(layout.home().with_extension("moved"));
    fs::rename(layout.home(), moved.home()).unwrap();
    assert_eq!(
        EnvLock::current_holder(&moved).as_ref(),
        Some(held.holder())
    );
    held.set_layout(&moved);
    drop(held);
    fs::rename(moved.home(), layout.home()).unwrap();
}

#[test]
fn one_process_at_a_time_takes_over_a_stale_lease() {
    let (_dir, layout) = home();
    let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
    for _ in 0..20 {
        write_lease(&layout, |holder| holder.process.pid_start += 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if let Attempt::Acquired(lock) = leased(&layout) {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        taken.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(matches!(leased(&layout), Attempt::Acquired(_)));
    }
    assert!(taken.load(Ordering::SeqCst) >= 20);
}

#[test]
fn a_lease_of_another_host_is_free_only_when_it_has_expired() {
    let (_dir, layout) = home();
    write_lease(&layout, |holder| {
        holder.process.host = "elsewhere".to_owned()
    });
    assert!(matches!(leased(&layout), Attempt::Held(Some(_))));
    let token = read_holder(&layout.lease()).unwrap().token;
    age(&layout.lease());
    assert!(renew_note(&layout.lease(), &token));
    assert!(matches!(leased(&layout), Attempt::Held(Some(_))));
    age(&layout.lease());
    assert!(!renew_note(&layout.lease(), "another token"));
    assert!(matches!(leased(&layout), Attempt::Acquired(_)));
}
