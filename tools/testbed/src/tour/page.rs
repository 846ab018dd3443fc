//! How the tour looks. This module writes everything that the tour prints on standard output.

use std::io::{self, Write as _};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use console::Term;

use crate::Stream;

/// No line is longer, even if the terminal is wider: it may be shown on a projector.
const WIDEST: usize = 80;

/// Text in shorter lines than this is hard to read. The drawings need 60 columns.
const NARROWEST: usize = 40;

/// Tells the shell that the command continues in the next line.
const GOES_ON: &str = if cfg!(windows) { " `" } else { " \\" };

const TITLE: Style = Style::new().bold();
const COMMAND: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The colours of a chapter's programs. Green and red are not among them, because they mean success and failure.
const PROGRAM_COLOURS: [Style; 5] = [
    AnsiColor::Cyan.on_default(),
    AnsiColor::Yellow.on_default(),
    AnsiColor::Magenta.on_default(),
    AnsiColor::Blue.on_default(),
    AnsiColor::BrightCyan.on_default(),
];

/// Standard output, with colours if it is a terminal and `NO_COLOR` is not set.
pub(super) struct Page {
    out: AutoStream<io::Stdout>,
    /// No line of text is longer.
    columns: usize,
    /// The chapter's programs, by their names in its drawing.
    programs: Vec<String>,
}

/// What was expected, and what was seen instead.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) expected: String,
    pub(super) seen: String,
    /// What to do about it, if we know.
    pub(super) advice: Option<String>,
}

impl Page {
    pub(super) fn new() -> Page {
        Page { out: anstream::stdout(), columns: columns(&Term::stdout()), programs: Vec::new() }
    }

    /// The title, the RabbitMQ that is used, and how to read the drawings.
    pub(super) fn opening(&mut self, broker: &str) -> io::Result<()> {
        writeln!(self.out)?;
        writeln!(self.out, "  {TITLE}RabbitMQ in Rust: the lessons, played{TITLE:#}")?;
        for line in wrap(broker, self.columns - 2) {
            writeln!(self.out, "  {line}")?;
        }
        writeln!(self.out, "  {QUIET}In the drawings: (program)  [queue]  <exchange>{QUIET:#}")
    }

    pub(super) fn title(&mut self, number: usize, title: &str, name: &str) -> io::Result<()> {
        let line = "━".repeat(self.columns.saturating_sub(14 + title.chars().count() + name.chars().count()));
        writeln!(
            self.out,
            "\n{QUIET}━━{QUIET:#} {TITLE}{number}{QUIET:#} {QUIET}━━{QUIET:#} {TITLE}{title}{TITLE:#} {QUIET}{line} {name} ━━{QUIET:#}\n"
        )
    }

    /// A drawing. The names in round brackets are the chapter's programs. Each gets a colour, here and in front of each line
    /// that it prints.
    pub(super) fn drawing(&mut self, drawing: &str) -> io::Result<()> {
        self.programs = names(drawing).map(str::to_owned).collect();
        for line in drawing.lines().filter(|line| !line.is_empty()) {
            let mut line = line.to_owned();
            for name in &self.programs {
                let style = self.style(name);
                line = line.replace(&format!("({name})"), &format!("{style}({name}){style:#}"));
            }
            writeln!(self.out, "    {line}")?;
        }
        Ok(())
    }

    /// A sentence or two.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out)?;
        for line in wrap(text, self.columns - 4) {
            writeln!(self.out, "  {line}")?;
        }
        writeln!(self.out)
    }

    /// The command that a person would type in the terminal of the program `name`.
    pub(super) fn command(&mut self, name: &str, command: &str) -> io::Result<()> {
        let (style, width) = (self.style(name), self.width());
        for (number, line) in wrap_command(command, self.columns - width - 5).iter().enumerate() {
            let (name, prompt) = if number == 0 { (name, '$') } else { ("", ' ') };
            writeln!(self.out, "  {style}{name:>width$} {prompt}{style:#} {COMMAND}{line}{COMMAND:#}")?;
        }
        Ok(())
    }

    /// A line that a program has printed. Standard error has a different bar, because there may be no colours.
    pub(super) fn output(&mut self, name: &str, stream: Stream, line: &str) -> io::Result<()> {
        let (style, width) = (self.style(name), self.width());
        let (bar, text) = match stream {
            Stream::Stdout => ('│', Style::new()),
            Stream::Stderr => ('┆', AnsiColor::Red.on_default()),
        };
        for (number, line) in wrap(line, self.columns - width - 5).iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            writeln!(self.out, "  {style}{name:>width$} {bar}{style:#} {text}{line}{text:#}")?;
        }
        Ok(())
    }

    /// Something that was as expected.
    pub(super) fn seen(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out)?;
        for (number, line) in wrap(text, self.columns - 6).iter().enumerate() {
            let mark = if number == 0 { '✓' } else { ' ' };
            writeln!(self.out, "  {GOOD}{mark} {line}{GOOD:#}")?;
        }
        Ok(())
    }

    /// Something that was not as expected.
    pub(super) fn difference(&mut self, difference: &Difference) -> io::Result<()> {
        writeln!(self.out, "\n  {BAD}✗ Not as expected{BAD:#}")?;
        self.expected_and_seen(difference)?;
        difference.advice.iter().try_for_each(|advice| self.detail("try", advice))
    }

    fn expected_and_seen(&mut self, Difference { expected, seen, .. }: &Difference) -> io::Result<()> {
        self.detail("expected", expected)?;
        self.detail("seen", seen)
    }

    fn detail(&mut self, what: &str, text: &str) -> io::Result<()> {
        for (number, line) in wrap(text, self.columns - 16).iter().enumerate() {
            let what = if number == 0 { what } else { "" };
            writeln!(self.out, "      {BAD}{what:8}{BAD:#}  {line}")?;
        }
        Ok(())
    }

    /// A table with its head. Each column is as wide as its longest cell. In a narrow terminal the columns stand closer together.
    pub(super) fn table(&mut self, head: &[&[&str]], rows: &[Vec<String>]) -> io::Result<()> {
        let head = head.iter().map(|cells| cells.iter().map(|cell| (*cell).to_owned()).collect());
        let head: Vec<Vec<String>> = head.collect();
        let mut widths: Vec<usize> = Vec::new();
        for (column, cell) in head.iter().chain(rows).flat_map(|row| row.iter().enumerate()) {
            widths.resize(widths.len().max(column + 1), 0);
            widths[column] = widths[column].max(cell.chars().count());
        }
        let (indent, gap) = if self.columns < WIDEST { ("  ", "  ") } else { ("    ", "   ") };
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join(gap).trim_end().to_owned()
        };
        writeln!(self.out)?;
        for row in &head {
            writeln!(self.out, "{indent}{TITLE}{}{TITLE:#}", line(row))?;
        }
        let rule = "─".repeat(widths.iter().sum::<usize>() + gap.len() * widths.len().saturating_sub(1));
        writeln!(self.out, "{indent}{QUIET}{rule}{QUIET:#}")?;
        rows.iter().try_for_each(|row| writeln!(self.out, "{indent}{}", line(row)))
    }

    /// The line over the summary.
    pub(super) fn rule(&mut self) -> io::Result<()> {
        writeln!(self.out, "\n{QUIET}{}{QUIET:#}\n", "━".repeat(self.columns))
    }

    /// A chapter's line in the summary.
    pub(super) fn verdict(
        &mut self,
        number: usize,
        title: &str,
        summary: &str,
        difference: Option<&Difference>,
    ) -> io::Result<()> {
        match difference {
            None => {
                let lines = wrap(summary, self.columns - 26);
                let (first, rest) = lines.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
                writeln!(self.out, "  {GOOD}✓{GOOD:#} {number}  {TITLE}{title:17}{TITLE:#}  {first}")?;
                rest.iter().try_for_each(|line| writeln!(self.out, "{:26}{line}", ""))
            }
            Some(difference) => {
                writeln!(
                    self.out,
                    "  {BAD}✗{BAD:#} {number}  {TITLE}{title:17}{TITLE:#}  {BAD}not as expected{BAD:#}"
                )?;
                self.expected_and_seen(difference)
            }
        }
    }

    /// The end of the tour.
    pub(super) fn closing(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return writeln!(self.out);
        }
        writeln!(self.out)?;
        for line in wrap(text, self.columns - 2) {
            writeln!(self.out, "  {QUIET}{line}{QUIET:#}")?;
        }
        writeln!(self.out)
    }

    fn style(&self, name: &str) -> Style {
        let at = self.programs.iter().position(|known| known == name);
        at.and_then(|at| PROGRAM_COLOURS.get(at % PROGRAM_COLOURS.len())).copied().unwrap_or(QUIET)
    }

    /// The width of the column with the programs' names.
    fn width(&self) -> usize {
        self.programs.iter().map(|name| name.chars().count()).max().unwrap_or(0)
    }
}

/// The width of the page on this terminal, or without a terminal.
pub(super) fn columns(terminal: &Term) -> usize {
    terminal.size_checked().map_or(WIDEST, |(_, columns)| usize::from(columns).clamp(NARROWEST, WIDEST))
}

/// The names in round brackets.
fn names(drawing: &str) -> impl Iterator<Item = &str> {
    drawing.split('(').skip(1).filter_map(|rest| rest.split_once(')')).map(|(name, _)| name)
}

/// Breaks a text into lines of at most `width` characters, at spaces. A line that fits stays as it is.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let Some(line) = lines.last_mut() else { break };
        if !line.trim().is_empty() && line.chars().count() + word.trim_end().chars().count() > width {
            lines.push(word.to_owned());
        } else {
            line.push_str(word);
        }
    }
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The same for a command, so that it can still be copied into a shell.
fn wrap_command(command: &str, width: usize) -> Vec<String> {
    if command.chars().count() <= width {
        return vec![command.to_owned()];
    }
    wrap(command, width - GOES_ON.len()).join(&format!("{GOES_ON}\n")).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{names, wrap, wrap_command};

    #[test]
    fn a_line_that_fits_stays_as_it_is() {
        assert_eq!(wrap(" [x]  Received", 14), [" [x]  Received"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn a_long_line_is_broken_at_spaces_only() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap(" unbreakable word", 5), [" unbreakable", "word"]);
    }

    #[cfg(not(windows))]
    #[test]
    fn a_long_command_is_broken_as_the_shell_allows() {
        assert_eq!(wrap_command("cargo run --bin send", 20), ["cargo run --bin send"]);
        assert_eq!(wrap_command("cargo run --bin send", 17), [r"cargo run --bin \", "send"]);
    }

    #[test]
    fn the_programs_of_a_drawing_are_the_names_in_round_brackets() {
        let drawing = "(send) ──▶ [hello] ──▶ (worker 1)";
        assert_eq!(names(drawing).collect::<Vec<_>>(), ["send", "worker 1"]);
    }
}
