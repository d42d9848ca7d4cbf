//! Maps owners between what images and rows store and what users of a mount see.
//!
//! Images and rows store the ids of the user who created the image. Only this module maps them to
//! ids of this machine and back, so rows do not depend on who mounts, and a commit writes them
//! unchanged.

use nix::errno::Errno;

use crate::sys::process::{self, IdMaps};

/// The mapping of stored owners to visible ones. The default is the identity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners {
    users: Alias,
    groups: Alias,
}

impl Owners {
    /// Returns the mapping for images with these owners (user and group of each). An ordinary user
    /// sees files of these owners as their own; other owners are not mapped, and for root none is
    /// that exists in its user namespace: it may use the files of all of these.
    /// A group that the user is a member of is not mapped either: they can use its files anyway.
    pub(crate) fn of_images(images: &[(u32, u32)]) -> Owners {
        let (user, group) = (process::user_id(), process::group_id());
        let ids = IdMaps::read();
        let is_root = user == 0;
        let users = images.iter().map(|owner| owner.0);
        let users = users.filter(|id| !(is_root && ids.has_user(*id)));
        let groups = images.iter().map(|owner| owner.1);
        let groups = groups.filter(|id| !(is_root && ids.has_group(*id)));
        Owners {
            users: Alias::new(user, users, &[]),
            groups: Alias::new(group, groups, &process::groups()),
        }
    }

    /// Returns the visible owner for a stored one.
    pub(super) fn visible(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.users.visible(uid), self.groups.visible(gid))
    }

    /// Returns the owner to store for an object that this user and group create.
    pub(super) fn stored(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.users.stored(uid), self.groups.stored(gid))
    }

    /// Returns the owner and group to store for a chown. Fails with `EINVAL` for an id that would
    /// be visible as another one, as a kernel with id mappings does for an id without a mapping.
    pub(super) fn stored_for_chown(
        &self,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(Option<u32>, Option<u32>), Errno> {
        let uid = uid
            .map(|uid| self.users.stored_for_chown(uid))
            .transpose()?;
        let gid = gid
            .map(|gid| self.groups.stored_for_chown(gid))
            .transpose()?;
        Ok((uid, gid))
    }
}

/// The stored ids that are visible as one id of this machine.
#[derive(Debug, Clone, Default)]
struct Alias {
    /// The visible id.
    id: u32,
    /// The id to store for `id`.
    stored_as: u32,
    /// The other stored ids that are visible as `id`.
    aliases: Vec<u32>,
}

impl Alias {
    /// Maps the owners of `images`, topmost image first, to `id`, except those in `unmapped`.
    fn new(id: u32, images: impl Iterator<Item = u32>, unmapped: &[u32]) -> Alias {
        let mut stored_as = None;
        let mut aliases = Vec::new();
        for owner in images {
            let is_alias = owner != id && !unmapped.contains(&owner);
            stored_as.get_or_insert(if is_alias { owner } else { id });
            if is_alias {
                aliases.push(owner);
            }
        }
        Alias {
            id,
            stored_as: stored_as.unwrap_or(id),
            aliases,
        }
    }

    fn visible(&self, stored: u32) -> u32 {
        match self.aliases.contains(&stored) {
            true => self.id,
            false => stored,
        }
    }

    fn stored(&self, id: u32) -> u32 {
        match id == self.id {
            true => self.stored_as,
            false => id,
        }
    }

    fn stored_for_chown(&self, id: u32) -> Result<u32, Errno> {
        match self.aliases.contains(&id) {
            true => Err(Errno::EINVAL),
            false => Ok(self.stored(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_images_are_visible_as_the_user_and_the_user_is_stored_as_the_topmost() {
        let alias = Alias::new(1001, [0, 7].into_iter(), &[]);
        assert_eq!(
            [0, 7, 8, 1001].map(|id| alias.visible(id)),
            [1001, 1001, 8, 1001]
        );
        assert_eq!([8, 1001].map(|id| alias.stored(id)), [8, 0]);
        assert_eq!(alias.stored_for_chown(1001), Ok(0));
        assert_eq!(
            alias.stored_for_chown(0),
            Err(Errno::EINVAL),
            "it would be visible as 1001"
        );
        assert_eq!(alias.stored_for_chown(8), Ok(8));
    }

    #[test]
    fn a_group_of_the_user_is_not_mapped() {
        let alias = Alias::new(1001, [100].into_iter(), &[1001, 100]);
        assert_eq!(
            (
                alias.visible(100),
                alias.stored(1001),
                alias.stored_for_chown(100)
            ),
            (100, 1001, Ok(100))
        );
    }

    #[test]
    fn no_owner_is_mapped_in_an_image_of_the_user() {
        for alias in [Alias::default(), Alias::new(1001, [1001].into_iter(), &[])] {
            for id in [0, 5, 1001] {
                assert_eq!(
                    (
                        alias.visible(id),
                        alias.stored(id),
                        alias.stored_for_chown(id)
                    ),
                    (id, id, Ok(id))
                );
            }
        }
        // New objects belong to the owner of the topmost image, here the user.
        let alias = Alias::new(1001, [1001, 0].into_iter(), &[]);
        assert_eq!((alias.visible(0), alias.stored(1001)), (1001, 1001));
    }
}
