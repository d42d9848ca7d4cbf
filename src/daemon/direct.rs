//! Mounts without a store: one or more stacked images, and a directory for changes.
//!
//! They are meant for programs that mount file systems themselves (`mount(8)`, fstab, test suites).
//! The directory has the layout of an environment's home, with symbolic links to the images. There
//! are no commits and no history.

mod open;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::process::Stdio;

pub(super) use self::open::Open;
use super::failure::{Failure, Kind};
use super::launch::{Launched, launch};
use super::log;
use super::protocol::{StartReport, Started};
use super::session::serve::{Notes, remove_upper};
use super::spec::{DirectMount, SessionSpec};
use super::startup::{Startup, report_start, start_up};
use super::unmount::{end_on_signal, end_unless_used};
use crate::environment::Layout;
use crate::fault;
use crate::sys::mount::{self, MountFlags, UnmountMode};
use crate::sys::{mountinfo, process};

/// Starts the daemon of a mount and waits until the mount can be used.
pub(crate) fn start(what: &DirectMount, slow: &dyn Fn()) -> Result<StartReport, Failure> {
    detach_dead(what.mount_point.as_path(), &what.source)?;
    start_daemon(what, &[], Stdio::null(), slow)
}

/// Starts a daemon for a mount with these options of its command line and this standard input.
pub(super) fn start_daemon(
    what: &DirectMount,
    options: &[&OsStr],
    input: Stdio,
    slow: &dyn Fn(),
) -> Result<StartReport, Failure> {
    let mut output = Stdio::null();
    let (mut log_path, mut log_warning) = (None, None);
    if let Some(upper) = &what.upper {
        let dir = upper.as_path();
        create_private_dir(dir)?;
        refuse_shared(dir)?;
        let layout = Layout::new(upper.as_path());
        let path = layout.daemon_log();
        let (file, warning) =
            log::open_or_discard(&layout).map_err(doing("write the log", &path))?;
        (output, log_warning) = (file.into(), warning);
        log_path = Some(path);
    }
    let spec = serde_json::to_string(what).map_err(|e| Failure::of(Kind::Internal, &e))?;
    let mut words = vec![OsStr::new("__serve")];
    words.extend(options);
    words.push(OsStr::new(&spec));
    let status = match launch(&words, input, output, slow)? {
        Launched::Ready(mut report) => {
            report.warnings.extend(log_warning);
            return Ok(report);
        }
        Launched::Ended(status) => status,
    };
    let failure = Failure::new(
        Kind::Daemon,
        format!("the daemon ended before it was ready ({status})"),
    );
    Err(match log_path {
        Some(path) => failure.hint(format!("see its log: {}", path.display())),
        None => failure,
    })
}

/// Returns the flags of the mount at a path.
pub(crate) fn flags_at(mount_point: &Path) -> Result<MountFlags, Failure> {
    let found = mountinfo::at(mount_point)
        .map_err(|e| Failure::io("cannot read the mount table", &e))?
        .filter(|mount| mount.fs_type.starts_with("fuse"));
    let found = found.ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            format!("{} is not a mount of envfs", mount_point.display()),
        )
    })?;
    let mut flags = MountFlags {
        suid: true,
        dev: true,
        ..MountFlags::default()
    };
    for word in &found.options {
        flags.apply(word.as_bytes());
    }
    Ok(flags)
}

/// Changes the flags of the mount at a path. Only root can do this.
pub(crate) fn remount(
    mount_point: &Path,
    before: MountFlags,
    after: MountFlags,
) -> Result<(), Failure> {
    let shown = mount_point.display();
    if before.synchronous != after.synchronous {
        return Err(Failure::new(
            Kind::Usage,
            format!("cannot change sync or dirsync of {shown}: they can be set only when mounting"),
        )
        .hint("unmount it, and mount it with the option"));
    }
    if before.read_only && !after.read_only && has_no_upper(mount_point) {
        return Err(Failure::new(
            Kind::Usage,
            format!("cannot make {shown} writable: it was mounted without a directory for changes"),
        )
        .hint("unmount it, and mount it with -o upper=DIR"));
    }
    Ok(mount::remount(mount_point, after)?)
}

/// Returns whether the mount at a path has no directory for changes. Its daemon has no control
/// socket, so this is read from its command line.
fn has_no_upper(mount_point: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut specs = pids.filter_map(|pid| {
        let words = process::command_line(pid);
        let at = words.iter().position(|word| word == "__serve")?;
        serde_json::from_slice::<DirectMount>(words.get(at + 1)?.as_bytes()).ok()
    });
    specs.any(|what| what.mount_point.as_path() == mount_point && what.upper.is_none())
}

/// Runs the daemon until it is unmounted. The requirements are those of [`super::host::run`].
pub(crate) fn run(what: &DirectMount) -> Result<(), Failure> {
    let Startup {
        signals,
        warnings,
        opened: (session, open, notes, command),
    } = start_up(|| {
        let spec = what.session.as_ref();
        let command = spec.map(SessionSpec::command).transpose()?.flatten();
        // Before the image is opened, so that `gc` does not remove it in between.
        let notes = spec.map(|spec| Notes::write(spec, what)).transpose()?;
        let open = Open::new(what)?;
        Ok((open.mount(what)?, open, notes, command))
    })
    .inspect_err(|_| remove_upper(what))?;
    let mount_point = what.mount_point.as_path().to_path_buf();
    let (at, source, stop_handle) = (
        mount_point.clone(),
        what.source.clone(),
        session.stop_handle(),
    );
    let served = std::thread::Builder::new()
        .name(String::from("signals"))
        .spawn(move || end_on_signal(signals, &at, &source, &stop_handle))
        .map_err(|e| Failure::io("cannot start a thread", &e))
        .and_then(|_| {
            let stop_handle = session.stop_handle();
            let watch =
                |command| SessionSpec::watch(command, &mount_point, &what.source, stop_handle);
            command.map(watch).transpose()
        });
    let watched = served.inspect_err(|_| {
        if let Err(error) = mount::unmount(&mount_point, UnmountMode::Lazy) {
            tracing::warn!(%error, "cannot undo the mount");
        }
        remove_upper(what);
    })?;
    fault::pause("pause.session.mounted");
    let reported = report_start(&Started::Ready {
        pid: std::process::id(),
        mount_point: mount_point.clone().into(),
        lost: open.lost,
        warnings,
    });
    if let Err(failure) = reported {
        tracing::warn!("{failure}");
        // One that ends with the command ends now.
        if watched.is_none() {
            end_unless_used(&mount_point, &session.stop_handle());
        }
    }
    fault::pause("pause.session.started");
    let result = session.wait();
    let closed = open.close();
    drop(open);
    fault::pause("pause.session.unmounted");
    remove_upper(what);
    drop((watched, notes));
    closed?;
    result
        .map(drop)
        .map_err(|e| Failure::io("cannot serve requests of the kernel", &e))
}

/// Detaches a dead mount with this source at the mount point.
fn detach_dead(mount_point: &Path, source: &str) -> Result<(), Failure> {
    let at = mountinfo::at(mount_point)
        .map_err(|e| Failure::io("cannot read the mount table", &e))?
        .filter(|mount| {
            mount.fs_type.starts_with("fuse") && mount.source == source && mount.is_dead()
        });
    if at.is_some() {
        mount::unmount(mount_point, UnmountMode::Lazy)?;
    }
    Ok(())
}

fn create_private_dir(path: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(doing("create", path))
}

/// Fails if other users can write to the directory: their files would appear in the mount.
fn refuse_shared(path: &Path) -> Result<(), Failure> {
    let meta = fs::metadata(path).map_err(doing("stat", path))?;
    let shown = path.display();
    let refused = |why: String| Failure::new(Kind::Conflict, format!("{shown} {why}"));
    if meta.uid() != process::user_id() {
        let owner = process::user_name(meta.uid());
        return Err(refused(format!("belongs to {owner}"))
            .hint("give a directory of your own for changes, or chown it"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(
            refused(String::from("is writable for others")).hint(format!("chmod go-w {shown}"))
        );
    }
    Ok(())
}

fn doing(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let doing = format!("cannot {what} {}", path.display());
    move |error| Failure::io(doing, &error)
}
