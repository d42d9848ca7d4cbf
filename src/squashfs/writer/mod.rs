//! Builds images. (room to be furnished)
