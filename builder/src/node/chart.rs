//! A boot's timeline as SVG.

use node_api::{BootStep, BootTimeline};
use std::fmt::Write;

const ROW: f64 = 20.0;
const LABEL: f64 = 220.0;
const WIDTH: f64 = 900.0;
const TOP: f64 = 60.0;

/// Draws the steps as bars, one a row. Steps that go on end at the last known moment.
pub fn svg(node: &str, boot: &BootTimeline) -> String {
    let end = boot
        .steps
        .iter()
        .flat_map(|s| [Some(s.start_ms), s.end_ms])
        .flatten()
        .max()
        .unwrap_or(0)
        .max(boot.init_ms)
        .max(1);
    let x = |ms: u64| LABEL + WIDTH * ms as f64 / end as f64;
    let height = TOP + ROW * (boot.steps.len() as f64 + 1.0) + 20.0;
    let total = LABEL + WIDTH + 120.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"16\">{}: {:.1} s</text>\n",
        escape(&format!("boot of {node}")),
        end as f64 / 1000.0
    );
    let step = grid(end);
    let mut tick = 0;
    while tick <= end {
        let at = x(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#777\">{:.1}</text>",
            height - 20.0,
            TOP - 6.0,
            tick as f64 / 1000.0
        );
        tick += step;
    }
    row(&mut out, 0, "kernel", 0, boot.init_ms, "#9aa5b1", "", &x);
    for (i, s) in boot.steps.iter().enumerate() {
        let colour = colour(s);
        row(&mut out, i + 1, &s.name, s.start_ms, s.end_ms.unwrap_or(end), colour, &s.note, &x);
    }
    out.push_str("</svg>\n");
    out
}

fn colour(step: &BootStep) -> &'static str {
    match (step.end_ms, step.name.starts_with("service ")) {
        (None, _) => "#d9822b",
        (Some(_), true) => "#3d8b5f",
        (Some(_), false) => "#3a6ea5",
    }
}

#[allow(clippy::too_many_arguments, reason = "a row is what it is made of")]
fn row(
    out: &mut String,
    number: usize,
    name: &str,
    start: u64,
    end: u64,
    colour: &str,
    note: &str,
    x: &dyn Fn(u64) -> f64,
) {
    let y = TOP + ROW * number as f64;
    let (left, right) = (x(start), x(end.max(start)));
    let millis = end.saturating_sub(start);
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"><title>{}</title></rect><text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">{millis} ms</text>",
        LABEL - 8.0,
        y + 14.0,
        escape(name),
        y + 3.0,
        (right - left).max(1.0),
        ROW - 6.0,
        escape(&format!("{name}: {start} to {end} ms {note}")),
        right + 4.0,
        y + 14.0,
    );
}

/// A distance of grid lines that gives about ten.
fn grid(end: u64) -> u64 {
    [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000]
        .into_iter()
        .find(|step| end / step <= 12)
        .unwrap_or(end.div_ceil(10))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_drawn_and_nothing_is_markup() {
        let step =
            |name: &str, start, end| BootStep { name: name.into(), start_ms: start, end_ms: end, note: String::new() };
        let boot =
            BootTimeline { init_ms: 900, steps: vec![step("mounts", 900, Some(950)), step("service <x>", 1000, None)] };
        let drawn = svg("w&1", &boot);
        assert!(drawn.starts_with("<svg") && drawn.ends_with("</svg>\n"));
        assert_eq!(drawn.matches("<rect x=").count(), 3);
        assert!(drawn.contains("service &lt;x&gt;") && drawn.contains("w&amp;1"));
        assert!(svg("n", &BootTimeline::default()).contains("<svg"));
    }
}
