//! Compares images of mksquashfs with their source, and checks that malicious images are rejected.

mod costs;
mod forged;
mod hostile;
mod matrix;
mod mutated;
mod seeds;
mod support;
