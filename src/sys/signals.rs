//! Handles the signals of this process.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The signals that end a daemon.
#[derive(Debug, Clone, Copy)]
pub struct TerminationSignals(SigSet);

impl TerminationSignals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and all threads that it starts from now on.
    pub fn block() -> io::Result<TerminationSignals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.add(Signal::SIGHUP);
        set.thread_block()?;
        Ok(TerminationSignals(set))
    }

    /// Waits for one of the signals and returns its name. Ignores SIGHUP, which is sent when a
    /// terminal is closed.
    pub fn wait(&self) -> io::Result<&'static str> {
        loop {
            match self.0.wait()? {
                Signal::SIGHUP => continue,
                signal => return Ok(signal.as_str()),
            }
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn record_interrupt(_signal: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on records the first Ctrl-C for [`was_interrupted`]; the second ends the process.
pub fn record_interrupts() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(record_interrupt),
        SaFlags::SA_RESETHAND | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only stores to an atomic, which is allowed in a handler.
    unsafe { sigaction(Signal::SIGINT, &action) }?;
    Ok(())
}

extern "C" fn ignore_interrupt(_signal: nix::libc::c_int) {}

/// From now on Ctrl-C does not end this process, but does end its children, as in a shell: children
/// inherit an ignored signal, but not a handler.
pub fn survive_interrupts() -> io::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(ignore_interrupt),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    let before = unsafe { sigaction(Signal::SIGINT, &action) }?;
    if matches!(before.handler(), SigHandler::SigIgn) {
        // The caller ignores the signal, so children must too.
        // SAFETY: no handler is installed.
        unsafe { sigaction(Signal::SIGINT, &before) }?;
    }
    Ok(())
}

/// Returns whether Ctrl-C was pressed since [`record_interrupts`].
pub fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

static CHILD: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: nix::libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
    let child = CHILD.load(Ordering::SeqCst);
    // A terminal sends the others to the child, too.
    if child > 0 && matches!(signal, nix::libc::SIGTERM | nix::libc::SIGHUP) {
        // SAFETY: the call takes two numbers, and is allowed in a handler.
        unsafe { nix::libc::kill(child, signal) };
    }
}

/// From now on this process survives the signals that end a command: it passes SIGTERM and SIGHUP
/// on to the process of [`pass_on_to`], and records all of them for [`was_interrupted`].
pub fn survive_with_child() -> io::Result<()> {
    let handler = SigHandler::Handler(pass_on);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        // SAFETY: the handler only uses atomics and kill, which are allowed in a handler.
        let before = unsafe { sigaction(signal, &action) }?;
        if matches!(before.handler(), SigHandler::SigIgn) {
            // The caller ignores the signal, so children must too.
            // SAFETY: no handler is installed.
            unsafe { sigaction(signal, &before) }?;
        }
    }
    Ok(())
}

/// Sets the process that signals are passed on to; `None` if it has ended. Forgets earlier signals.
pub fn pass_on_to(child: Option<u32>) {
    let child = child.and_then(|child| i32::try_from(child).ok());
    CHILD.store(child.unwrap_or(0), Ordering::SeqCst);
    INTERRUPTED.store(false, Ordering::SeqCst);
}
