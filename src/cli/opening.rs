//! Opens an environment for a command: mounts it, asks its daemon, or opens it in this process.

use std::time::{Duration, Instant};

use super::env::Env;
use super::error::{CommandError, Result};
use super::{backend, conda_list, read_only};
use crate::commit::{Collected, GcOptions};
use crate::daemon::client::Client;
use crate::daemon::failure::Kind;
use crate::daemon::lifecycle::{self, State};
use crate::daemon::protocol::{Service, TagOptions};
use crate::daemon::service::LOCK_TIMEOUT;
use crate::daemon::session::of_other_job;
use crate::environment::{EnvLock, refuse_replaceable};
use crate::progress::NoProgress;
use crate::sys::cgroup::Scope;
use crate::sys::mount::Rights;

impl Env {
    /// Returns whether its store is on a read-only file system and no daemon has it open.
    fn cannot_be_opened(&self) -> Result<bool> {
        Ok(self.is_read_only() && matches!(self.state()?, State::Unmounted))
    }

    /// Mounts it unless it is mounted. Replaces a dead mount.
    pub fn ensure_mounted(&self) -> Result<Option<Client>> {
        self.ensure_mounted_with(Rights::Own)
    }

    /// Mounts it with these rights unless it is mounted. Fails if [`Rights::Root`] is requested and
    /// it is mounted without.
    pub fn ensure_mounted_with(&self, rights: Rights) -> Result<Option<Client>> {
        backend::warn_of_newer(&self.environment, &self.facts);
        if let Some(parent) = self.target.prefix.parent() {
            refuse_replaceable(parent)?;
        }
        if self.cannot_be_opened()? {
            read_only::mount(self)?;
            conda_list::add(&self.target.prefix);
            return Ok(None);
        }
        let client =
            lifecycle::ensure_mounted(&self.target, &self.runtime, rights, &backend::slow_start)?;
        if let Some(client) = &client
            && client.start_report().is_none()
            && Scope::is_of_other_job(client.hello().pid)
        {
            let shown = format!("the mount of {}", self.name());
            return Err(of_other_job(&shown, self.name(), client.hello().pid).into());
        }
        if let Some(report) = client.as_ref().and_then(Client::start_report) {
            let log = self.environment.layout().daemon_log();
            backend::print_start_warnings(self.name(), report, &log);
            conda_list::add(&self.target.prefix);
        }
        Ok(client)
    }

    /// Returns a client of its daemon if there is one, else a service in this process.
    pub fn service(&self) -> Result<Box<dyn Service>> {
        if self.cannot_be_opened()? {
            return Ok(Box::new(read_only::Unchanged::of(self)?));
        }
        self.with_daemon_or_locally(
            || backend::local(&self.environment),
            |client| Ok(Box::new(client)),
        )
    }

    /// Removes old revisions, and images and discarded changes that are no longer needed.
    pub fn gc(&self, options: GcOptions) -> Result<Collected> {
        if options.dry_run {
            // A dry run only reads, so it does not need the lock.
            return backend::gc(&self.environment, options);
        }
        self.with_daemon_or_locally(
            || backend::gc(&self.environment, options),
            |client| Ok(client.gc(options, &NoProgress)?),
        )
    }

    /// Sets or deletes a tag.
    pub fn tag(&self, options: &TagOptions) -> Result<()> {
        self.with_daemon_or_locally(
            || backend::tag(&self.environment, options),
            |client| Ok(client.tag(options, &NoProgress)?),
        )
    }

    /// Returns whether another host has the environment mounted writable.
    fn is_mounted_elsewhere(&self) -> bool {
        let holder = EnvLock::current_holder(self.environment.layout());
        holder.is_some_and(|holder| holder.is_mount_of_other_host())
    }

    /// Calls `by_daemon` if the environment has a daemon, else `locally`, which takes the lock.
    fn with_daemon_or_locally<T>(
        &self,
        locally: impl Fn() -> Result<T>,
        by_daemon: impl FnOnce(Client) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match self.state()? {
                State::Unmounted | State::Dead(_) => match locally() {
                    // Another command holds the lock, or a daemon is starting or ending.
                    Err(error)
                        if error.kind == Kind::Busy
                            && Instant::now() < deadline
                            && !self.is_mounted_elsewhere() =>
                    {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    done => return done,
                },
                State::Mounted(client) | State::Elsewhere(client) => return by_daemon(client),
                State::Copy(from) => {
                    return Err(lifecycle::copied(&self.target, from.as_deref()).into());
                }
                State::Unreachable => {
                    return Err(CommandError::new(
                        Kind::Daemon,
                        format!(
                            "the daemon of {} is unreachable: its socket no longer exists",
                            self.name()
                        ),
                    )
                    .hint(format!("envfs unmount {0} && envfs mount {0}", self.name())));
                }
            }
        }
    }
}
