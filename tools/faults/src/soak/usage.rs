//! Samples the memory of this process over time, and counts its threads.

use std::{
    fmt, fs,
    time::{Duration, Instant},
};

/// Growth that does not count: allocators keep pages, and buffers grow to the size that the worst moment needs.
const ALLOWED_MIB: f64 = 10.0;
const ALLOWED_PART: f64 = 0.2;

/// How many samples are shown.
const SHOWN: usize = 24;

/// Samples of the resident memory.
pub struct Memory {
    begun: Instant,
    samples: Vec<(Duration, f64)>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { begun: Instant::now(), samples: Vec::new() }
    }
}

impl Memory {
    /// Takes a sample, and returns it in MiB. `None` if the system does not say it.
    pub fn sample(&mut self) -> Option<f64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        self.samples.push((self.begun.elapsed(), kilobytes / 1024.0));
        Some(kilobytes / 1024.0)
    }

    /// Says what is wrong if the memory grew. Compares the average of the last quarter with that of the first one,
    /// after a warm-up.
    pub fn trouble(&self) -> Option<String> {
        let last = self.samples.last()?.0;
        let warm = (last / 4).min(Duration::from_secs(60));
        let samples: Vec<f64> = self.samples.iter().filter(|(at, _)| *at >= warm).map(|(_, size)| *size).collect();
        let quarter = samples.len() / 4;
        if quarter == 0 {
            return None;
        }
        let average = |samples: &[f64]| samples.iter().sum::<f64>() / samples.len() as f64;
        let (first, last) = (average(&samples[..quarter]), average(&samples[samples.len() - quarter..]));
        let allowed = ALLOWED_MIB.max(first * ALLOWED_PART);
        (last - first > allowed).then(|| format!("memory grew from {first:.1} to {last:.1} MiB"))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.samples.len().div_ceil(SHOWN).max(1);
        // The last one is always shown.
        let shown = self.samples.iter().rev().step_by(step).rev();
        let shown: Vec<_> = shown.map(|(at, size)| format!("{size:.1} at {} s", at.as_secs())).collect();
        f.write_str(&shown.join(", "))
    }
}

/// How many threads of this process run connections. Each connection manager has one. `None` if the system does not say
/// it.
pub fn connection_threads() -> Option<usize> {
    let names = fs::read_dir("/proc/self/task").ok()?.flatten();
    let names = names.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
    Some(names.filter(|name| name.trim_end() == "rabbitmq").count())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Memory;

    fn memory(sizes: impl Iterator<Item = f64>) -> Memory {
        let samples = sizes.enumerate().map(|(index, size)| (Duration::from_secs(5 * index as u64), size)).collect();
        Memory { samples, ..Memory::default() }
    }

    #[test]
    fn growth_after_the_warm_up_is_trouble_and_growth_before_is_none() {
        assert_eq!(memory((0..100).map(|_| 40.0)).trouble(), None);
        assert_eq!(memory((0..100).map(|index| f64::from(index).min(10.0))).trouble(), None);
        assert!(memory((0..100).map(|index| 40.0 + f64::from(index))).trouble().is_some());
    }
}
