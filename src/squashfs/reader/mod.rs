//! Serves random access to many threads. (room to be furnished)
