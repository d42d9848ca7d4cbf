//! Fault injection for tests: crash points, failures, panics and hangs.
//!
//! [`POINTS`] lists the steps of every operation with several steps. Tests crash the process at
//! each of them and check recovery, so a new step is covered as soon as it is listed. The variable
//! `ENVFS_FAULT` names the point at which the process kills itself, or the fault to inject. Only
//! builds with debug assertions read it. It may name several, separated by commas.

/// All crash points, in the order of the steps of each operation.
pub const POINTS: &[&str] = &[
    "import.packed",
    "import.named",
    "import.checked",
    "import.initialised",
    "import-history.rebuilt",
    "import-history.initialised",
    "forward.rebuilt",
    "forward.flipped",
    "in-place.created",
    "in-place.placed",
    "in-place.renamed",
    "in-place.swapped",
    "in-place.mounted",
    "in-place-undo.begun",
    "in-place-undo.swapped",
    "in-place-undo.removed",
    "finish.begun",
    "finish.deleted",
    "clone.linked",
    "clone.initialised",
    "relocate.begun",
    "relocate.edited",
    "commit.rotated",
    "split.linked",
    "split.swapped",
    "commit.written",
    "commit.named",
    "commit.checked",
    "commit.flipped",
    "commit.cleaned",
    "discard.begun",
    "discard.flipped",
    "rollback.begun",
    "rollback.flipped",
    "discard-paths.frozen",
    "discard-paths.flipped",
    "restore.frozen",
    "restore.staged",
    "restore.flipped",
    "undo.begun",
    "undo.flipped",
    "checkpoint.begun",
    "checkpoint.flipped",
    "expose.recorded",
    "expose.renamed",
    "expose.removed",
    "try.begun",
    "try.noted",
    "try.ended",
    "keep.copied",
    "keep.flipped",
    "set-aside.flipped",
    "drop.removed",
];

/// The fault that disables every sync of a file, directory, file system or database. With it the
/// power loss tests must fail, which shows that they detect a missing sync.
pub const NO_SYNC: &str = "sync.none";

/// Returns whether a test injects this fault, which is not a crash point.
#[cfg(debug_assertions)]
pub(crate) fn is_enabled(name: &'static str) -> bool {
    debug_assert!(!POINTS.contains(&name), "{name} is a crash point");
    is_wanted(name)
}

#[cfg(debug_assertions)]
fn is_wanted(name: &str) -> bool {
    std::env::var("ENVFS_FAULT").is_ok_and(|wanted| wanted.split(',').any(|word| word == name))
}

/// Returns false: release builds inject no faults.
#[cfg(not(debug_assertions))]
pub(crate) fn is_enabled(_name: &'static str) -> bool {
    false
}

/// Panics on the first call if a test injects this fault (`panic.` and a place).
#[cfg(debug_assertions)]
pub(crate) fn panic_once(name: &'static str) {
    use std::sync::atomic::{AtomicBool, Ordering};
    static HAS_PANICKED: AtomicBool = AtomicBool::new(false);
    if is_enabled(name) && !HAS_PANICKED.swap(true, Ordering::SeqCst) {
        panic!("injected fault: {name}");
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn panic_once(_name: &'static str) {}

/// Hangs if a test injects this fault (`hang.` and a place).
#[cfg(debug_assertions)]
pub(crate) fn hang(name: &'static str) {
    while is_enabled(name) {
        std::thread::park();
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn hang(_name: &'static str) {}

/// Waits if a test injects this fault (`pause.` and a place), until the file `PLACE.go` exists in
/// the directory `ENVFS_PAUSE`. Creates `PLACE.here` there first.
#[cfg(debug_assertions)]
pub(crate) fn pause(name: &'static str) {
    let Some(dir) = std::env::var_os("ENVFS_PAUSE").filter(|_| is_enabled(name)) else {
        return;
    };
    let file = |end: &str| std::path::Path::new(&dir).join(format!("{name}.{end}"));
    drop(std::fs::write(file("here"), ""));
    while !file("go").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn pause(_name: &'static str) {}

/// Kills the process with SIGKILL if `ENVFS_FAULT` names this crash point.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &'static str) {
    debug_assert!(
        POINTS.contains(&name),
        "crash point {name} is not in POINTS"
    );
    if is_wanted(name) {
        tracing::warn!(name, "killing the process at a crash point");
        let own = nix::unistd::Pid::this();
        // The signal cannot be caught, so this does not return unless sending fails.
        if nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).is_err() {
            std::process::abort();
        }
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_name: &'static str) {}
