//! Small charts, drawn as SVG by the server, so that they need no script. Whoever cannot see a chart has its text.

use std::fmt::Write as _;

use maud::{Markup, html};

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 48.0;

/// A line through the values, the oldest left. `label` says for a screen reader what it is; `show` writes a value. A gap is where a value is not known.
#[must_use]
pub fn trend(label: &str, values: &[Option<f64>], show: impl Fn(f64) -> String) -> Markup {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    let (Some(last), Some(top)) = (known.last(), known.iter().copied().reduce(f64::max)) else {
        return html! { p.trend-none { "no figures yet" } };
    };
    let text = format!(
        "{label}: now {}, at most {} in the last {}",
        show(*last),
        show(top),
        span(values.len())
    );
    html! {
        svg.trend role="img" aria-label=(text) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" {
            title { (text) }
            path.trend-area d=(area(values, top)) {}
            path.trend-line d=(line(values, top)) {}
        }
    }
}

/// A bar that is filled up to a share from 0 to 1.
#[must_use]
pub fn meter(label: &str, share: f64) -> Markup {
    let share = share.clamp(0.0, 1.0);
    html! {
        svg.meter role="img" aria-label=(format!("{label}: {:.0} %", share * 100.0)) viewBox="0 0 100 4" preserveAspectRatio="none" {
            rect.meter-all x="0" y="0" width="100" height="4" {}
            rect.meter-used.meter-high[share > 0.75] x="0" y="0" width=(format!("{:.1}", share * 100.0)) height="4" {}
        }
    }
}

/// The time that so many values are of.
fn span(values: usize) -> String {
    let seconds = values as u64 * crate::snapshot::INTERVAL.as_secs();
    super::show::duration(std::time::Duration::from_secs(seconds))
}

fn place(index: usize, value: f64, length: usize, top: f64) -> (f64, f64) {
    let x = if length > 1 {
        index as f64 / (length - 1) as f64 * WIDTH
    } else {
        0.0
    };
    let share = if top > 0.0 { value / top } else { 0.0 };
    (x, HEIGHT - 2.0 - share * (HEIGHT - 6.0))
}

fn line(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    let mut is_open = false;
    for (index, value) in values.iter().enumerate() {
        let Some(value) = value else {
            is_open = false;
            continue;
        };
        let (x, y) = place(index, *value, values.len(), top);
        let _ = write!(path, "{}{x:.1} {y:.1}", if is_open { "L" } else { "M" });
        is_open = true;
    }
    path
}

/// As [`line`], closed down to the bottom.
fn area(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    let mut last = None;
    for (index, value) in values.iter().enumerate() {
        if let Some(value) = value {
            let (x, y) = place(index, *value, values.len(), top);
            match last {
                None => _ = write!(path, "M{x:.1} {HEIGHT}L{x:.1} {y:.1}"),
                Some(_) => _ = write!(path, "L{x:.1} {y:.1}"),
            }
            last = Some(x);
        } else if let Some(x) = last.take() {
            let _ = write!(path, "L{x:.1} {HEIGHT}Z");
        }
    }
    if let Some(x) = last {
        let _ = write!(path, "L{x:.1} {HEIGHT}Z");
    }
    path
}

#[cfg(test)]
mod tests {
    use super::{line, meter, trend};

    #[test]
    fn a_line_has_a_gap_where_nothing_was_known() {
        let path = line(&[Some(0.0), Some(1.0), None, Some(2.0)], 2.0);
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
        assert!(path.contains("240.0 4.0"), "the highest value is at the top: {path}");
    }

    #[test]
    fn whoever_cannot_see_it_has_its_text() {
        let shown = trend("lag", &[Some(2.0), Some(1.0)], |value| format!("{value} s")).into_string();
        assert!(shown.contains("lag: now 1 s, at most 2 s in the last 10 s"), "{shown}");
        assert!(
            trend("lag", &[None], |_| String::new())
                .into_string()
                .contains("no figures yet")
        );
        assert!(meter("WAL", 0.5).into_string().contains("WAL: 50 %"));
    }
}
