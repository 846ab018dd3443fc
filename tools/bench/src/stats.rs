//! The median and the spread of a few rounds.

/// The median, the least and the most of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Summary {
    /// `None` if there are no values.
    pub fn of(values: &[f64]) -> Option<Summary> {
        Some(Summary {
            median: median(values)?,
            least: values.iter().copied().reduce(f64::min)?,
            most: values.iter().copied().reduce(f64::max)?,
        })
    }
}

/// The median of the ratios of all rounds. The measurements of one round follow each other, so a disturbance of the
/// machine affects both.
pub fn ratio(values: &[f64], yardstick: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = values.iter().zip(yardstick).map(|(value, other)| value / other).collect();
    median(&ratios).filter(|ratio| ratio.is_finite())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::{Summary, ratio};

    #[test]
    fn the_median_ignores_one_bad_round() {
        assert_eq!(Summary::of(&[3.0, 100.0, 1.0]), Some(Summary { median: 3.0, least: 1.0, most: 100.0 }));
        assert_eq!(Summary::of(&[4.0, 2.0]).map(|summary| summary.median), Some(3.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // In the second round the machine was slow, for both variants.
        assert_eq!(ratio(&[10.0, 1.0, 12.0], &[20.0, 2.0, 24.0]), Some(0.5));
        assert_eq!(ratio(&[10.0], &[]), None);
    }
}
