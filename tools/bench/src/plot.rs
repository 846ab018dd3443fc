//! Draws throughput against units in flight. The SVG is written by hand, because no plotting crate writes a style sheet
//! into the file. With one, a single file follows the reader's light or dark mode.

use std::{collections::BTreeMap, fmt::Write};

use crate::{measure::Measured, report::number, stats::Summary, variants::Variant, work::Work};

const COLUMNS: usize = 3;
const PANEL: (f64, f64) = (320.0, 220.0);
/// Space left, above, right and below of a panel's own axes.
const MARGIN: (f64, f64, f64, f64) = (58.0, 34.0, 14.0, 34.0);
const LEGEND: f64 = 30.0;
/// The distance from one name to the next.
const LEGEND_STEP: f64 = 140.0;

// The colours have enough contrast on white and on near-black, and differ for the colour-blind.
const STYLE: &str = "
  svg { background: #fff; font: 12px system-ui, sans-serif; }
  text { fill: #222; } .title { font-weight: 600; } .grid { stroke: #ddd; }
  polyline { fill: none; stroke-width: 2; }
  .amqprs { stroke: #0072b2; fill: #0072b2; } .common { stroke: #c04000; fill: #c04000; }
  .lapin { stroke: #008060; fill: #008060; } .aio-pika { stroke: #a05090; fill: #a05090; }
  .amqprs-confirming { stroke: #806000; fill: #806000; }
  polyline.amqprs, polyline.amqprs-confirming, polyline.common, polyline.lapin, polyline.aio-pika { fill: none; }
  polyline.amqprs-confirming { stroke-dasharray: 5 3; }
  @media (prefers-color-scheme: dark) {
    svg { background: #16181c; } text { fill: #ddd; } .grid { stroke: #3a3d44; }
    .amqprs { stroke: #56b4e9; fill: #56b4e9; } .common { stroke: #ff9d5c; fill: #ff9d5c; }
    .lapin { stroke: #2fd0a0; fill: #2fd0a0; } .aio-pika { stroke: #e0a0d0; fill: #e0a0d0; }
    .amqprs-confirming { stroke: #e0c050; fill: #e0c050; }
  }";

/// The points of one variant: units in flight, and the median.
type Line = Vec<(usize, f64)>;

/// One panel for each kind of work that was measured with several numbers in flight. `None` if there is no such work.
pub fn svg(results: &[(Work, Vec<Measured>)]) -> Option<String> {
    let panels: Vec<_> =
        panels(results).into_iter().filter(|(_, lines)| lines.iter().any(|(_, line)| line.len() > 1)).collect();
    if panels.is_empty() {
        return None;
    }
    let columns = panels.len().min(COLUMNS);
    // There must be room for the legend, even above a single panel.
    let (width, height) =
        ((PANEL.0 * columns as f64).max(960.0), LEGEND + PANEL.1 * panels.len().div_ceil(columns) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\">\n<title>Units per second against units in flight</title>\n<style>{STYLE}\n</style>\n"
    );
    legend(&mut svg);
    for (index, (title, lines)) in panels.iter().enumerate() {
        let at = (PANEL.0 * (index % columns) as f64, LEGEND + PANEL.1 * (index / columns) as f64);
        panel(&mut svg, at, title, lines);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn panels(results: &[(Work, Vec<Measured>)]) -> Vec<(String, Vec<(Variant, Line)>)> {
    let mut panels: Vec<(String, Vec<(Variant, Line)>)> = Vec::new();
    for (work, measured) in results {
        let Some((title, x)) = work.point() else { continue };
        let index = panels.iter().position(|(other, _)| *other == title).unwrap_or_else(|| {
            panels.push((title, Variant::ALL.map(|variant| (variant, Line::new())).into()));
            panels.len() - 1
        });
        for one in measured {
            let Some(summary) = Summary::of(&one.figures) else { continue };
            for (_, line) in panels[index].1.iter_mut().filter(|(variant, _)| *variant == one.variant) {
                line.push((x, summary.median));
            }
        }
    }
    panels
}

fn legend(svg: &mut String) {
    for (index, variant) in Variant::ALL.iter().enumerate() {
        let x = MARGIN.0 + LEGEND_STEP * index as f64;
        let _ = writeln!(svg, "<circle class=\"{variant}\" cx=\"{x}\" cy=\"16\" r=\"4\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"20\">{variant}</text>", x + 10.0);
    }
    let x = MARGIN.0 + LEGEND_STEP * Variant::ALL.len() as f64;
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"20\">units/s, against units in flight</text>");
}

fn panel(svg: &mut String, (left, top): (f64, f64), title: &str, lines: &[(Variant, Line)]) {
    let (width, height) = (PANEL.0 - MARGIN.0 - MARGIN.2, PANEL.1 - MARGIN.1 - MARGIN.3);
    let (left, top) = (left + MARGIN.0, top + MARGIN.1);
    // The numbers in flight stand at equal distances: 1, 50, 500.
    let mut places = BTreeMap::new();
    places.extend(lines.iter().flat_map(|(_, line)| line).map(|(x, _)| (*x, 0.0)));
    let last = places.len().saturating_sub(1).max(1) as f64;
    for (index, place) in places.values_mut().enumerate() {
        *place = left + width * (0.05 + 0.9 * index as f64 / last);
    }
    let (step, most) = scale(lines.iter().flat_map(|(_, line)| line).map(|(_, y)| *y).fold(0.0, f64::max));
    let height_of = |value: f64| top + height * (1.0 - value / most);

    let _ = writeln!(svg, "<text class=\"title\" x=\"{left}\" y=\"{:.1}\">{title}</text>", top - 12.0);
    let mut value = 0.0;
    while value <= most {
        let y = height_of(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            left + width
        );
        let label = if value == 0.0 { "0/s".to_owned() } else { number(value) };
        let _ = writeln!(svg, "<text text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>", left - 6.0, y + 4.0);
        value += step;
    }
    for (x, place) in &places {
        let _ =
            writeln!(svg, "<text text-anchor=\"middle\" x=\"{place:.1}\" y=\"{:.1}\">{x}</text>", top + height + 18.0);
    }
    for (variant, line) in lines {
        let points: Vec<_> = line.iter().map(|(x, y)| (places[x], height_of(*y))).collect();
        let joined: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(svg, "<polyline class=\"{variant}\" points=\"{}\"/>", joined.join(" "));
        for ((x, y), (count, value)) in points.iter().zip(line) {
            let told = format!("{variant}, {count} in flight: {}/s", number(*value));
            let _ = writeln!(
                svg,
                "<circle class=\"{variant}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{told}</title></circle>"
            );
        }
    }
}

/// A round step, and the end of an axis for values up to `most`: about four steps of 1, 2 or 5.
fn scale(most: f64) -> (f64, f64) {
    let rough = most.max(1.0) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    (step, step * (most.max(1.0) / step).ceil())
}

#[cfg(test)]
mod tests {
    use super::{scale, svg};
    use crate::{measure::Measured, variants::Variant, work::Work};

    #[test]
    fn an_axis_has_round_numbers() {
        assert_eq!(scale(97_000.0), (50_000.0, 100_000.0));
        assert_eq!(scale(7.3), (2.0, 8.0));
    }

    #[test]
    fn each_kind_of_work_with_several_numbers_in_flight_is_a_panel() {
        let measured = |figure| {
            let variant = Variant::Ours;
            vec![Measured { variant, figures: vec![figure], cpu: vec![], peak_mib: None }]
        };
        let one = vec![(Work::Consume { prefetch: 1 }, measured(10.0)), (Work::Connect, measured(3.0))];
        assert_eq!(svg(&one), None);
        let two =
            vec![(Work::Consume { prefetch: 1 }, measured(10.0)), (Work::Consume { prefetch: 20 }, measured(200.0))];
        let picture = svg(&two).unwrap();
        assert!(picture.contains("common, 20 in flight: 200/s") && picture.contains("consume and ack"), "{picture}");
    }
}
