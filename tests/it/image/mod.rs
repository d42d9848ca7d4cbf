//! Images made by commands: the blocks that a commit carries over and compresses, space shared with
//! older images, and commands that inspect images.

mod costs;
mod embedded;
mod files;
mod links;
mod order;
mod sharing;
