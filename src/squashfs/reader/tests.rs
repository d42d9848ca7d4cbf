//! Images made by mksquashfs compared with what they were made from; images made by hand to do
//! harm.

mod costs;
mod forged;
mod hostile;
mod matrix;
mod mutated;
mod seeds;
mod support;
