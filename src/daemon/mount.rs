//! Mounts of environments: opens one under its lock and serves it at its prefix.

use std::path::PathBuf;
use std::sync::Arc;

use super::auto_checkpoint::Watch;
use super::failure::{Failure, Kind};
use super::host::Mounted;
use super::idle::Idle;
use super::private::{Inside, Unserved};
use super::profile::Recording;
use super::protocol::ServedHome;
use super::runtime::RuntimeDir;
use super::service::{ActiveMount, LOCK_TIMEOUT, Local};
use crate::environment::{Config, Environment, MOUNTED, ProfileUse};
use crate::fuse::session::Session;
use crate::fuse::{EnvFs, Owners};
use crate::sys::mount::{MountRequest, Rights};
use crate::sys::mountinfo;

/// Returns the mount of an environment with this id at its prefix.
pub(crate) fn mount_request(prefix: PathBuf, id: String, rights: Rights) -> MountRequest {
    MountRequest {
        mount_point: prefix,
        id,
        // Mounts by root are accessible to all users, subject to permissions, as directories are.
        allow_other: nix::unistd::geteuid().is_root(),
        rights,
        options: Default::default(),
    }
}

/// Opens an environment and mounts it at its prefix, unless it is mounted privately already.
///
/// With [`Rights::Root`], owners are shown as recorded.
pub(crate) fn mount_environment(
    environment: Environment,
    config: &Config,
    rights: Rights,
    private: Option<Unserved>,
) -> Result<Mounted, Failure> {
    let home = ServedHome::of(environment.layout())
        .map_err(|error| Failure::io("cannot stat the environment's home", &error))?;
    let local = Arc::new(Local::open(environment, config, MOUNTED, LOCK_TIMEOUT)?);
    let db = local.workspace().db();
    let missing = |what: &str| Failure::new(Kind::Damaged, format!("the database lacks {what}"));
    let prefix = db.prefix()?.ok_or_else(|| missing("the prefix"))?;
    let id = db.uuid()?.ok_or_else(|| missing("its identity"))?;
    let owners = match local.workspace().image_owner()? {
        Some(owner) if rights == Rights::Own => Owners::of_images(&[owner]),
        _ => Owners::default(),
    };
    let mut filesystem = EnvFs::new(local.workspace().union().clone(), owners)?;
    filesystem.set_poll(config.daemon.poll);
    if let Some(hold) = local.hold() {
        filesystem.refuse_changes_without(hold);
    }
    if config.history.auto_checkpoint {
        filesystem.set_before_change(Arc::new(Watch::new(Arc::downgrade(&local))));
    }
    let counters = filesystem.counters();
    let notices = filesystem.notices();
    let (session, inside) = match private {
        Some(Unserved { device, inside }) => {
            let session = Session::serve(filesystem, device, &prefix)?;
            (session, Some(inside))
        }
        None => {
            let request = mount_request(prefix.clone(), id.clone(), rights);
            (Session::start(filesystem, &request)?, None)
        }
    };
    notices.connect(session.invalidator());
    let workspace = local.workspace();
    let profile = (config.profile == ProfileUse::On)
        .then(|| Recording::start(workspace.env().layout().profile(), workspace.union()));
    // A private mount ends with its last process.
    if let Some(age) = config.session.idle
        && inside.is_none()
    {
        let idle = Idle {
            limit: age.duration(),
            mount_point: prefix.clone(),
            source: mountinfo::source(&id),
            counters: counters.clone(),
            stop_handle: session.stop_handle(),
            runtime: RuntimeDir::open(),
        };
        idle.watch();
    }
    let active = ActiveMount {
        invalidator: session.invalidator(),
        mount_point: prefix,
        root: inside.as_ref().map(Inside::root),
        counters,
        poll: config.daemon.poll,
        profile,
    };
    local.set_mount(active)?;
    Ok(Mounted {
        session,
        lost: local.reconciled().lost.len(),
        service: local,
        home,
        inside,
    })
}
