//! Medians, quantiles, and numbers as text.

use hdrhistogram::Histogram;

/// The middle value, or the mean of the two middle values. It is 0 for no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// No wait here is longer. A longer latency counts as this one.
const LATENCY_MAX_US: u64 = 600_000_000;

/// An empty histogram for latencies in microseconds, with a precision of three digits.
///
/// # Errors
/// Never for these constants.
pub(crate) fn latency_histogram() -> anyhow::Result<Histogram<u64>> {
    // It has bounds, because a histogram that grows by itself does not grow for `saturating_record`.
    Ok(Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?)
}

/// Adds the latency between two times in microseconds. All clocks are this machine's, so the end is not before the begin unless the machine's
/// clock was set back in between: such a latency counts as 0.
pub(crate) fn record_latency(latencies_us: &mut Histogram<u64>, begin_us: i64, end_us: i64) {
    latencies_us.saturating_record(u64::try_from(end_us - begin_us).unwrap_or(0));
}

/// A quantile of latencies in microseconds, given in milliseconds.
pub(crate) fn quantile_ms(latencies_us: &Histogram<u64>, quantile: f64) -> f64 {
    latencies_us.value_at_quantile(quantile) as f64 / 1000.0
}

/// Writes `126473.4` as `126,473`.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{latency_histogram, median, quantile_ms, thousands};

    #[test]
    fn a_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_given_in_milliseconds() {
        let mut histogram = latency_histogram().unwrap();
        for us in 1..=1000 {
            histogram.saturating_record(us * 10);
        }
        assert!((quantile_ms(&histogram, 0.5) - 5.0).abs() < 0.02);
        assert!((quantile_ms(&histogram, 0.99) - 9.9).abs() < 0.02);
    }

    #[test]
    fn thousands_are_set_off() {
        assert_eq!(thousands(126_473.4), "126,473");
        assert_eq!(thousands(999.6), "1,000");
        assert_eq!(thousands(12.0), "12");
    }
}
