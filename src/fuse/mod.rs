//! (room to be furnished)

pub mod session;
