//! Points at which a test may let the process die, to see what the next open makes of it.
//!
//! Every multi-step operation names its steps here; tests go through [`POINTS`], so a new step is
//! covered as soon as it is listed. Only builds with debug assertions listen: the variable
//! `ENVFS_FAULT` names the point at which the process kills itself, or something that is to fail.

/// All points, in the order of the steps of each operation.
pub const POINTS: &[&str] = &[
    "import.packed",
    "import.named",
    "import.checked",
    "import.initialised",
    "commit.rotated",
    "commit.written",
    "commit.named",
    "commit.checked",
    "commit.flipped",
    "commit.cleaned",
    "discard.begun",
    "discard.flipped",
    "rollback.begun",
    "rollback.flipped",
];

/// The fault that switches off every sync of a file, a directory, a file system or the database, so that
/// the power loss tests can show that they notice what a missing sync loses.
pub const NO_SYNC: &str = "sync.none";

/// Returns true if a test wants something to fail that is not a point.
#[cfg(debug_assertions)]
pub(crate) fn is_enabled(name: &'static str) -> bool {
    debug_assert!(!POINTS.contains(&name), "{name} is a point");
    std::env::var_os("ENVFS_FAULT").is_some_and(|wanted| wanted == name)
}

/// Nothing is, in builds for users.
#[cfg(not(debug_assertions))]
pub(crate) fn is_enabled(_name: &'static str) -> bool {
    false
}

/// Panics here the first time, if a test wants that: `panic.` and where.
#[cfg(debug_assertions)]
pub(crate) fn panic_once(name: &'static str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static WAS: AtomicBool = AtomicBool::new(false);
    if is_enabled(name) && !WAS.swap(true, Ordering::SeqCst) {
        panic!("as a test wants: {name}");
    }
}

/// Does nothing in builds for users.
#[cfg(not(debug_assertions))]
pub(crate) fn panic_once(_name: &'static str) {}

/// Never returns, if a test wants something to hang: `hang.` and where.
#[cfg(debug_assertions)]
pub(crate) fn hang(name: &'static str) {
    while is_enabled(name) {
        std::thread::park();
    }
}

/// Does nothing in builds for users.
#[cfg(not(debug_assertions))]
pub(crate) fn hang(_name: &'static str) {}

/// Dies here, as by `kill -9`, if the environment asks for it.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &'static str) {
    debug_assert!(POINTS.contains(&name), "fault point {name} is not listed");
    if std::env::var_os("ENVFS_FAULT").is_some_and(|wanted| wanted == name) {
        tracing::warn!(name, "dying here, as asked");
        let own = nix::unistd::Pid::this();
        // The signal cannot be caught, so this does not return; if it could not be sent, abort.
        if nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).is_err() {
            std::process::abort();
        }
    }
}

/// Does nothing in builds for users.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &'static str) {}
