//! Who owns what, as the users of a mount see it.
//!
//! Images and rows keep numbers of whoever made the image; here is the one place where they become
//! somebody on this machine, and back. What the rows say is therefore true whoever mounts, and a
//! commit writes it as it is.

use nix::errno::Errno;

use crate::sys::process;

/// How the owners that are kept are shown. The default shows all as they are.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    users: Alias,
    groups: Alias,
}

impl Owners {
    /// An ordinary user sees what belongs to the owners of these images (user and group of each) as
    /// their own; all others are shown as they are, and for root all are. A group that the user is in
    /// stays what it is: its files are theirs to read as it is.
    pub fn of_images(images: &[(u32, u32)]) -> Owners {
        let (user, group) = (process::user_id(), process::group_id());
        if user == 0 {
            return Owners::default();
        }
        Owners {
            users: Alias::new(user, images.iter().map(|owner| owner.0), &[]),
            groups: Alias::new(
                group,
                images.iter().map(|owner| owner.1),
                &process::groups(),
            ),
        }
    }

    /// Returns how an owner that is kept is shown.
    pub(super) fn shown(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.users.shown(uid), self.groups.shown(gid))
    }

    /// Returns what is kept of whoever makes something.
    pub(super) fn kept(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.users.kept(uid), self.groups.kept(gid))
    }

    /// Returns what is kept of a new owner and a new group; `EINVAL` for one who would be shown as
    /// another, as from a kernel that maps owners and has no number for one.
    pub(super) fn chosen(
        &self,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(Option<u32>, Option<u32>), Errno> {
        let uid = uid.map(|uid| self.users.chosen(uid)).transpose()?;
        let gid = gid.map(|gid| self.groups.chosen(gid)).transpose()?;
        Ok((uid, gid))
    }
}

/// Numbers in images that all stand for one here.
#[derive(Debug, Clone, Default)]
struct Alias {
    here: u32,
    /// What is kept of whoever is `here`.
    own: u32,
    /// All that are shown as `here`, which is not among them.
    others: Vec<u32>,
}

impl Alias {
    /// `images` has what stands for `here`, the uppermost image's first, but for those who `stay`.
    fn new(here: u32, images: impl Iterator<Item = u32>, stay: &[u32]) -> Alias {
        let mut own = None;
        let mut others = Vec::new();
        for id in images {
            let is_other = id != here && !stay.contains(&id);
            own.get_or_insert(if is_other { id } else { here });
            if is_other {
                others.push(id);
            }
        }
        Alias {
            here,
            own: own.unwrap_or(here),
            others,
        }
    }

    fn shown(&self, kept: u32) -> u32 {
        match self.others.contains(&kept) {
            true => self.here,
            false => kept,
        }
    }

    fn kept(&self, id: u32) -> u32 {
        match id == self.here {
            true => self.own,
            false => id,
        }
    }

    fn chosen(&self, id: u32) -> Result<u32, Errno> {
        match self.others.contains(&id) {
            true => Err(Errno::EINVAL),
            false => Ok(self.kept(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_an_image_belongs_to_is_the_user_and_what_is_made_is_the_images() {
        let alias = Alias::new(1001, [0, 7].into_iter(), &[]);
        assert_eq!(
            [0, 7, 8, 1001].map(|id| alias.shown(id)),
            [1001, 1001, 8, 1001]
        );
        assert_eq!([8, 1001].map(|id| alias.kept(id)), [8, 0]);
        assert_eq!(alias.chosen(1001), Ok(0));
        assert_eq!(
            alias.chosen(0),
            Err(Errno::EINVAL),
            "it would be shown as 1001"
        );
        assert_eq!(alias.chosen(8), Ok(8));
    }

    #[test]
    fn a_group_that_the_user_is_in_stays_itself() {
        let alias = Alias::new(1001, [100].into_iter(), &[1001, 100]);
        assert_eq!(
            (alias.shown(100), alias.kept(1001), alias.chosen(100)),
            (100, 1001, Ok(100))
        );
    }

    #[test]
    fn in_an_image_of_ones_own_all_is_as_it_is() {
        for alias in [Alias::default(), Alias::new(1001, [1001].into_iter(), &[])] {
            for id in [0, 5, 1001] {
                assert_eq!(
                    (alias.shown(id), alias.kept(id), alias.chosen(id)),
                    (id, id, Ok(id))
                );
            }
        }
        // What is made belongs to the uppermost image's owner, who is the user.
        let alias = Alias::new(1001, [1001, 0].into_iter(), &[]);
        assert_eq!((alias.shown(0), alias.kept(1001)), (1001, 1001));
    }
}
