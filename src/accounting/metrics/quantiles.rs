//! Quantiles of a histogram, as near as its buckets tell.

use prometheus::HistogramVec;
use prometheus::core::Collector;

use crate::accounting::metrics::DURATION_BUCKETS;

/// The observations of a histogram since the start, over all its labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// How many were not above each bound of [`DURATION_BUCKETS`].
    below: Vec<u64>,
    count: u64,
}

impl Quantiles {
    pub(super) fn of(histogram: &HistogramVec) -> Self {
        let mut sums = Quantiles::default();
        for family in histogram.collect() {
            for metric in family.get_metric() {
                let told = metric.get_histogram();
                let buckets = told.get_bucket();
                sums.below.resize(buckets.len().max(sums.below.len()), 0);
                for (sum, bucket) in sums.below.iter_mut().zip(buckets) {
                    *sum += bucket.cumulative_count();
                }
                sums.count += told.get_sample_count();
            }
        }
        sums
    }

    /// Those that came after an earlier moment.
    pub fn since(&self, earlier: &Quantiles) -> Quantiles {
        let before = earlier.below.iter().chain(std::iter::repeat(&0));
        let below = self.below.iter().zip(before);
        Quantiles {
            below: below
                .map(|(now, before)| now.saturating_sub(*before))
                .collect(),
            count: self.count.saturating_sub(earlier.count),
        }
    }

    /// The time in seconds below which this share of the observations is, as far as the buckets tell: in between two bounds
    /// they count as evenly spread. None without observations.
    pub fn at(&self, share: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        // Counts are far below 2^53.
        let wanted = share * self.count as f64;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in DURATION_BUCKETS.iter().zip(&self.below) {
            let count = *count as f64;
            if count >= wanted && count > below {
                return Some(low + (bound - low) * (wanted - below) / (count - below));
            }
            (low, below) = (*bound, count);
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use crate::accounting::metrics::Metrics;

    #[test]
    fn a_quantile_lies_between_the_bounds_of_its_bucket() {
        let metrics = Metrics::default();
        let histogram = &metrics.duration;
        assert_eq!(metrics.duration_quantiles().at(0.5), None);
        let observe = |seconds: f64| {
            let labels = ["responses", "main"];
            histogram.with_label_values(&labels).observe(seconds);
        };
        (0..90).for_each(|_| observe(0.06));
        let before = metrics.duration_quantiles();
        (0..10).for_each(|_| observe(7.0));
        let told = metrics.duration_quantiles();
        let within = |at: Option<f64>, low: f64, high: f64| {
            assert!(at.is_some_and(|at| at > low && at <= high), "{at:?}");
        };
        within(told.at(0.5), 0.05, 0.1);
        within(told.at(0.95), 5.0, 10.0);
        within(told.since(&before).at(0.5), 5.0, 10.0);
        observe(7000.0);
        assert_eq!(metrics.duration_quantiles().at(1.0), Some(600.0));
    }
}
