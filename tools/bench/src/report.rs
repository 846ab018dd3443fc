//! Prints the figures, for people as a table and for programs as lines of JSON.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::{
    instructions::Counted,
    measure::Measured,
    stats::{Summary, ratio},
    variants::Variant,
    work::Work,
};

/// One line of `--json`.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub work: String,
    pub variant: String,
    pub median: f64,
    pub unit: String,
    /// The median of the ratios of all rounds. It also exists for times and memory, where less is better.
    pub ratio_to_bare_amqprs: Option<f64>,
    pub ratio_to_lapin: Option<f64>,
    pub min: f64,
    pub max: f64,
    pub rounds: usize,
}

/// All figures of one work: for each variant the main figure, processor time and memory.
pub fn figures(work: &Work, measured: &[Measured]) -> Vec<Figure> {
    let main = |one: &Measured| one.figures.clone();
    let cpu = |one: &Measured| one.cpu.clone();
    let memory = |one: &Measured| one.peak_mib.into_iter().collect::<Vec<_>>();
    let mut all = Vec::new();
    for one in measured {
        all.extend(figure(work.to_string(), work.unit(), one, measured, main));
        all.extend(figure(format!("{work}/cpu"), &format!("µs/{}", work.noun()), one, measured, cpu));
        all.extend(figure(format!("{work}/peak-memory"), "MiB", one, measured, memory));
    }
    all
}

fn figure(
    work: String,
    unit: &str,
    one: &Measured,
    all: &[Measured],
    values: impl Fn(&Measured) -> Vec<f64>,
) -> Option<Figure> {
    let own = values(one);
    let Summary { median, least, most } = Summary::of(&own)?;
    let to = |variant| all.iter().find(|other| other.variant == variant).and_then(|other| ratio(&own, &values(other)));
    Some(Figure {
        work,
        variant: one.variant.to_string(),
        median,
        unit: unit.to_owned(),
        ratio_to_bare_amqprs: to(Variant::Bare),
        ratio_to_lapin: to(Variant::Lapin),
        min: least,
        max: most,
        rounds: own.len(),
    })
}

impl Figure {
    /// A count of instructions: one number, without a spread.
    pub fn of_instructions(work: &Work, counted: &[Counted]) -> Vec<Figure> {
        let of = |variant| counted.iter().find(|one: &&Counted| one.variant == variant).map(|one| one.per_unit);
        let figure = |one: &Counted| Figure {
            work: format!("{work}/instructions"),
            variant: one.variant.to_string(),
            median: one.per_unit,
            unit: format!("instructions/{}", work.noun()),
            ratio_to_bare_amqprs: of(Variant::Bare).map(|bare| one.per_unit / bare),
            ratio_to_lapin: of(Variant::Lapin).map(|lapin| one.per_unit / lapin),
            min: one.per_unit,
            max: one.per_unit,
            rounds: 1,
        };
        counted.iter().map(figure).collect()
    }
}

/// A table of the measurements, with a row for each work and variant.
pub fn table(results: &[(Work, Vec<Measured>)]) -> Table {
    let heads =
        ["work", "variant", "median", "unit", "min – max", "× amqprs", "× lapin", "processor µs", "peak memory MiB"];
    let mut table = empty(heads.as_slice());
    for (work, measured) in results {
        for (index, one) in measured.iter().enumerate() {
            let Some(figure) = figure(work.to_string(), work.unit(), one, measured, |one| one.figures.clone()) else {
                continue;
            };
            let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
            let optional = |value: Option<f64>| value.map_or("-".into(), number);
            table.add_row([
                // The name stands only in the first of its rows.
                if index == 0 { figure.work } else { String::new() },
                figure.variant,
                number(figure.median),
                figure.unit,
                format!("{} – {}", number(figure.min), number(figure.max)),
                ratio(figure.ratio_to_bare_amqprs),
                ratio(figure.ratio_to_lapin),
                optional(Summary::of(&one.cpu).map(|cpu| cpu.median)),
                optional(one.peak_mib),
            ]);
        }
    }
    align(table, &[2, 4, 5, 6, 7, 8])
}

/// A table of instruction counts.
pub fn instructions_table(figures: &[Figure]) -> Table {
    let mut table = empty(&["work", "variant", "instructions", "per", "× amqprs", "× lapin"]);
    for figure in figures {
        let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        table.add_row([
            figure.work.clone(),
            figure.variant.clone(),
            number(figure.median),
            figure.unit.replace("instructions/", ""),
            ratio(figure.ratio_to_bare_amqprs),
            ratio(figure.ratio_to_lapin),
        ]);
    }
    align(table, &[2, 4, 5])
}

fn empty(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(heads.iter().copied());
    table
}

fn align(mut table: Table, right: &[usize]) -> Table {
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A number with three significant digits, and with commas between thousands.
pub fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut apart = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_as_long_as_they_mean_something() {
        let all = [1.234, 56.78, 123.4, 12_345.6, 1_234_567.0].map(number);
        assert_eq!(all, ["1.23", "56.8", "123", "12,346", "1,234,567"]);
    }
}
