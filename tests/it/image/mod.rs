//! Images as the commands make them: what a commit carries and what it compresses, in counts; how new
//! images share space with old ones; what the commands say of any image.

mod costs;
mod embedded;
mod files;
mod links;
mod sharing;
