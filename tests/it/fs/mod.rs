//! Real programs in a mount.
