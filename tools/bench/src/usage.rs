//! How much processor time and memory this process uses. `None` if the system does not say it.

/// Seconds of processor time, in user mode and in the system.
#[cfg(unix)]
pub fn cpu_seconds() -> Option<f64> {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    Some((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

#[cfg(not(unix))]
pub fn cpu_seconds() -> Option<f64> {
    None
}

/// The most memory that was resident at any time, in KiB.
#[cfg(target_os = "linux")]
pub fn peak_kib() -> Option<u64> {
    // Not from `getrusage`, whose peak includes the process that started this one.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(all(unix, not(target_os = "linux")))]
pub fn peak_kib() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok()?;
    Some(if cfg!(target_vendor = "apple") { peak / 1024 } else { peak })
}

#[cfg(not(unix))]
pub fn peak_kib() -> Option<u64> {
    None
}

/// The memory that is resident now, in MiB.
pub fn resident_mib() -> Option<f64> {
    Some(memory_stats::memory_stats()?.physical_mem as f64 / f64::from(1 << 20))
}
