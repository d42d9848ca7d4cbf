//! Images made by mksquashfs compared with what they were made from; images made by hand to do
//! harm.

mod forged;
mod matrix;
mod mutated;
mod support;
