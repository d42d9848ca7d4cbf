//! Images made by commands: the blocks that a commit carries over and compresses, and space shared
//! with older images.

mod costs;
mod embedded;
mod links;
mod order;
mod sharing;
