//! Charts as SVG: stacked bars over periods, a line of shares, and bars beside names. They know nothing of requests. Colours
//! come from the page's style, by class.

use std::fmt::Write;

use crate::cli::report::html::escape;

/// In units of the drawing, which is scaled to the page.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 80.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 24.0;
/// Of a bar beside its name.
const ROW: f64 = 26.0;
const NAMES: f64 = 300.0;
const VALUES: f64 = 110.0;
/// Letters of a name beside a bar.
const NAME_LENGTH: usize = 40;
/// Periods that are named below a chart.
const LABELS: usize = 10;
/// Lines across a chart.
const TICKS: usize = 4;

/// A bar beside its name.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) shown: String,
}

/// A bar for each period, of one piece for each part; `parts` are classes of the style, and the legend.
pub(super) fn stacks<const N: usize>(
    periods: &[(String, [f64; N])],
    parts: &[&str; N],
    shown: impl Fn(f64) -> String,
) -> String {
    let most = periods
        .iter()
        .map(|(_, values)| values.iter().sum())
        .fold(0.0, f64::max);
    let frame = Frame::new(periods.len(), most);
    let mut svg = frame.open(&shown);
    for (at, (name, values)) in periods.iter().enumerate() {
        let mut from = 0.0;
        for (part, value) in parts.iter().zip(values).filter(|(_, value)| **value > 0.0) {
            let (top, bottom) = (frame.y(from + value), frame.y(from));
            let _ = write!(
                svg,
                "<rect class=\"{part}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}, {part}: {}</title></rect>",
                frame.x(at) - frame.bar() / 2.0,
                frame.bar(),
                (bottom - top).max(0.5),
                escape(name),
                shown(*value)
            );
            from += value;
        }
    }
    let used = |at: usize| periods.iter().any(|(_, values)| values[at] > 0.0);
    let used = (0..N).filter(|at| used(*at));
    for (number, at) in used.enumerate() {
        let x = LEFT + 110.0 * number as f64;
        let part = parts[at];
        let _ = write!(
            svg,
            "<rect class=\"{part}\" x=\"{x}\" y=\"2\" width=\"11\" height=\"11\"/><text x=\"{}\" y=\"12\">{part}</text>",
            x + 16.0
        );
    }
    frame.close(svg, periods.iter().map(|(name, _)| name.as_str()))
}

/// A line through the shares of periods, broken where there is none.
pub(super) fn lines(periods: &[(String, Option<f64>)]) -> String {
    let most = periods
        .iter()
        .filter_map(|(_, share)| *share)
        .fold(0.0, f64::max);
    let shown = |share: f64| format!("{:.1}%", share * 100.0);
    let frame = Frame::new(periods.len(), if most > 0.0 { most } else { 0.01 });
    let mut svg = frame.open(&shown);
    let mut path = String::new();
    let mut pen = 'M';
    for (at, (name, share)) in periods.iter().enumerate() {
        let Some(share) = share else {
            pen = 'M';
            continue;
        };
        let (x, y) = (frame.x(at), frame.y(*share));
        let _ = write!(path, "{pen}{x:.1} {y:.1}");
        let _ = write!(
            svg,
            "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{}: {}</title></circle>",
            escape(name),
            shown(*share)
        );
        pen = 'L';
    }
    let _ = write!(svg, "<path class=\"rate\" d=\"{path}\"/>");
    frame.close(svg, periods.iter().map(|(name, _)| name.as_str()))
}

/// The longest bar fills the width.
pub(super) fn bars(rows: &[Bar]) -> String {
    let most = rows.iter().map(|row| row.value).fold(0.0, f64::max);
    let mut svg = open(ROW * rows.len().max(1) as f64);
    for (at, row) in rows.iter().enumerate() {
        let y = ROW * at as f64;
        let width = if most > 0.0 {
            row.value / most * (WIDTH - NAMES - VALUES)
        } else {
            0.0
        };
        let name: String = row.name.chars().take(NAME_LENGTH).collect();
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"default\" x=\"{NAMES}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            NAMES - 10.0,
            y + 17.0,
            escape(&name),
            y + 4.0,
            ROW - 8.0,
            NAMES + width + 8.0,
            y + 17.0,
            row.shown
        );
    }
    svg + "</svg>"
}

fn open(height: f64) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">")
}

/// The axes of a chart over periods.
struct Frame {
    periods: usize,
    /// The value of the uppermost line.
    top: f64,
}

impl Frame {
    fn new(periods: usize, most: f64) -> Frame {
        Frame {
            periods: periods.max(1),
            top: round_up(most),
        }
    }

    /// The middle of a period.
    fn x(&self, at: usize) -> f64 {
        LEFT + (WIDTH - LEFT) * (at as f64 + 0.5) / self.periods as f64
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / self.top
    }

    fn bar(&self) -> f64 {
        ((WIDTH - LEFT) / self.periods as f64 * 0.8).min(60.0)
    }

    fn open(&self, shown: &impl Fn(f64) -> String) -> String {
        let mut svg = open(HEIGHT);
        for tick in 0..=TICKS {
            let value = self.top * tick as f64 / TICKS as f64;
            let y = self.y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                shown(value)
            );
        }
        svg
    }

    fn close<'n>(&self, mut svg: String, names: impl Iterator<Item = &'n str>) -> String {
        let step = self.periods.div_ceil(LABELS);
        for (at, name) in names.enumerate().step_by(step) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                self.x(at),
                HEIGHT - 6.0,
                escape(name)
            );
        }
        svg + "</svg>"
    }
}

/// To 1, 2, 4 or 8 times a power of ten, so that quarters of it are short numbers.
fn round_up(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0, 10.0];
    let step = steps
        .into_iter()
        .find(|step| step * power >= most * 0.999_999);
    step.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_that_is_not_too_small() {
        for (most, expected) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (3.0, 4.0),
            (870.0, 1000.0),
            (0.07, 0.08),
        ] {
            assert!(
                (round_up(most) - expected).abs() < 1e-9,
                "{most}: {}",
                round_up(most)
            );
        }
    }

    #[test]
    fn names_are_escaped_and_the_longest_bar_is_within_the_drawing() {
        let bar = |name: &str, value| Bar {
            name: name.to_owned(),
            value,
            shown: "7".to_owned(),
        };
        let svg = bars(&[bar("<script>&", 2.0), bar("b", 1.0)]);
        assert!(
            svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script>"),
            "{svg}"
        );
        assert!(
            svg.contains("width=\"550.0\"") && svg.contains("width=\"275.0\""),
            "{svg}"
        );
    }

    #[test]
    fn a_line_breaks_where_there_is_no_share() {
        let periods = [Some(0.5), None, Some(0.1), Some(0.2)];
        let periods: Vec<_> = periods
            .into_iter()
            .map(|share| ("d".to_owned(), share))
            .collect();
        let svg = lines(&periods);
        let path = svg.split("d=\"").nth(1).unwrap();
        assert_eq!(path.matches('M').count(), 2, "{svg}");
    }

    #[test]
    fn an_empty_chart_is_drawn() {
        assert!(stacks::<1>(&[], &["other"], |value| value.to_string()).ends_with("</svg>"));
        assert!(lines(&[]).ends_with("</svg>"));
        assert!(bars(&[]).ends_with("</svg>"));
    }
}
