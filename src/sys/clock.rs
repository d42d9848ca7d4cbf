//! The local time zone, and the time since boot.

#![allow(unsafe_code)]

use nix::libc;

/// Returns the seconds since boot, including those in which the system was suspended.
pub fn since_boot() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.ok()
        .and_then(|now| u64::try_from(now.tv_sec()).ok())
        .unwrap_or_default()
}

/// Returns how far local time is ahead of UTC at a moment (in seconds since 1970), in seconds; 0 if
/// the system does not know. The variable `TZ` or `/etc/localtime` determines the zone.
pub fn utc_offset(seconds: i64) -> i64 {
    let mut parts = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call. `localtime_r` writes the whole structure and
    // returns a pointer to it, or null, in which case it is not read.
    unsafe {
        if libc::localtime_r(&seconds, parts.as_mut_ptr()).is_null() {
            return 0;
        }
        parts.assume_init_ref().tm_gmtoff
    }
}
