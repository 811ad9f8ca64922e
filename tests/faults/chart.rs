//! Draws curves over time as an SVG.

const WIDTH: f64 = 760.0;
const PANEL: f64 = 130.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 40.0;
const GAP: f64 = 34.0;
const COLOURS: [&str; 2] = ["#1f5fa8", "#c2571a"];

pub struct Chart<'a> {
    pub title: &'a str,
    /// From top to bottom, each with a scale of its own.
    pub panels: Vec<Vec<Curve>>,
    /// Moments that are marked, in minutes.
    pub marks: Vec<f64>,
}

pub struct Curve {
    pub name: &'static str,
    /// Minutes, and the value.
    pub points: Vec<(f64, f64)>,
}

impl Chart<'_> {
    pub fn svg(&self) -> String {
        let height = TOP + self.panels.len() as f64 * (PANEL + GAP);
        let curves = || self.panels.iter().flatten();
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let minutes =
            most(&mut curves().flat_map(|curve| curve.points.iter().map(|point| point.0)));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
            LEFT + WIDTH + 20.0,
            self.title
        );
        for (at, panel) in self.panels.iter().enumerate() {
            let top = TOP + at as f64 * (PANEL + GAP);
            let highest = most(
                &mut panel
                    .iter()
                    .flat_map(|curve| curve.points.iter().map(|point| point.1)),
            );
            let scale = Scale {
                top,
                minutes: minutes.max(0.01),
                highest: highest.max(1.0) * 1.1,
            };
            svg.push_str(&scale.frame(&self.marks));
            for (number, (curve, colour)) in panel.iter().zip(COLOURS).enumerate() {
                svg.push_str(&scale.curve(curve, colour, number));
            }
        }
        svg + "</svg>\n"
    }
}

/// Where a panel stands, and what its edges mean.
struct Scale {
    top: f64,
    minutes: f64,
    highest: f64,
}

impl Scale {
    fn x(&self, minutes: f64) -> f64 {
        LEFT + WIDTH * minutes / self.minutes
    }

    fn y(&self, value: f64) -> f64 {
        self.top + PANEL * (1.0 - value / self.highest)
    }

    fn frame(&self, marks: &[f64]) -> String {
        let (bottom, middle) = (self.top + PANEL, self.highest / 2.0);
        let mut frame = format!(
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"{WIDTH}\" height=\"{PANEL}\" fill=\"none\" stroke=\"#999\"/>\n\
             <text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{middle:.0}</text>\n\
             <text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">0</text>\n\
             <text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{:.1} min</text>\n",
            self.top,
            LEFT - 6.0,
            self.y(middle) + 4.0,
            LEFT - 6.0,
            bottom + 4.0,
            LEFT + WIDTH,
            bottom + 16.0,
            self.minutes,
        );
        for mark in marks {
            let x = self.x(*mark);
            frame.push_str(&format!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\" stroke=\"#bbb\" stroke-dasharray=\"3 3\"/>\n",
                self.top
            ));
        }
        frame
    }

    fn curve(&self, curve: &Curve, colour: &str, number: usize) -> String {
        let points = curve.points.iter();
        let points: Vec<String> = points
            .map(|(at, value)| format!("{:.1},{:.1}", self.x(*at), self.y(*value)))
            .collect();
        format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/>\n\
             <text x=\"{}\" y=\"{:.0}\" fill=\"{colour}\">{}</text>\n",
            points.join(" "),
            LEFT + 6.0 + 180.0 * number as f64,
            self.top - 5.0,
            curve.name
        )
    }
}
