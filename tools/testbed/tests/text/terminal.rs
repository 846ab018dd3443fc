//! One terminal: what it must show, and what the program in it prints.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Result, bail, ensure};
use testbed::{Running, Stream};

use crate::console::fits;

#[derive(Default)]
pub struct Terminal {
    /// The command line of the latest program.
    command: String,
    pub running: Option<Running>,
    /// The variables that `export` has set.
    pub environment: BTreeMap<String, String>,
    pub heard: Heard,
    expected: Vec<Expected>,
    /// The lines that a `…` alone has stood for.
    passed_over: Vec<String>,
}

/// Lines that the program has printed and that have not been compared yet.
#[derive(Default)]
pub struct Heard {
    stdout: VecDeque<String>,
    stderr: VecDeque<String>,
}

impl Heard {
    pub fn push(&mut self, stream: Stream, line: &str) {
        match stream {
            Stream::Stdout => self.stdout.push_back(line.to_owned()),
            Stream::Stderr => self.stderr.push_back(line.to_owned()),
        }
    }
}

/// What the text shows.
struct Expected {
    line: usize,
    what: What,
    /// The stream that it has come from, once it has come.
    from: Option<Stream>,
}

enum What {
    Line(String),
    /// Any number of lines.
    Gap,
    Interrupt,
}

impl Terminal {
    /// Begins another program, with the output that the text shows.
    pub fn begin(&mut self, command: &str, output: Vec<(usize, String)>) {
        self.command = command.to_owned();
        self.heard = Heard::default();
        self.expected.clear();
        self.passed_over.clear();
        for (line, text) in output {
            self.expect(line, &text);
        }
    }

    pub fn expect(&mut self, line: usize, text: &str) {
        let what = if text.trim() == "…" { What::Gap } else { What::Line(text.to_owned()) };
        self.expected.push(Expected { line, what, from: None });
    }

    pub fn expect_interrupt(&mut self, line: usize) {
        self.expected.push(Expected { line, what: What::Interrupt, from: None });
    }

    pub fn heard(&mut self, stream: Stream, line: &str) {
        self.heard.push(stream, line);
    }

    /// Compares the new lines, and presses Ctrl-C when it is time.
    pub fn go_on(&mut self) -> Result<()> {
        self.take_lines();
        let next = self.expected.iter().position(Expected::is_missing);
        if let Some(at) = next
            && matches!(self.expected[at].what, What::Interrupt)
        {
            self.interrupt()?;
            self.expected[at].from = Some(Stream::Stdout);
        }
        Ok(())
    }

    pub fn interrupt(&mut self) -> Result<()> {
        // The program may have ended meanwhile. Then it cannot be interrupted.
        self.running.as_mut().filter(|running| running.id().is_some()).map_or(Ok(()), Running::interrupt)
    }

    /// The lines of each stream come in the order of the text. Lines of the two streams may mix in any way.
    pub fn take_lines(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let heard = match stream {
                Stream::Stdout => &mut self.heard.stdout,
                Stream::Stderr => &mut self.heard.stderr,
            };
            while let Some(line) = heard.front() {
                // The search begins after the last line of this stream, and ends before a Ctrl-C that has not been
                // pressed yet.
                let last = self.expected.iter().rposition(|expected| expected.from == Some(stream));
                let rest = &mut self.expected[last.map_or(0, |at| at + 1)..];
                let is_end = |one: &Expected| matches!(one.what, What::Interrupt) && one.is_missing();
                let end = rest.iter().position(is_end).unwrap_or(rest.len());
                let rest = &mut rest[..end];
                // After a `…`, only the next missing line may come. Otherwise expected lines of the other stream may be
                // skipped.
                let next = rest.iter().position(Expected::is_missing).unwrap_or(rest.len());
                let in_gap = rest[..next].iter().any(|expected| matches!(expected.what, What::Gap));
                let candidates = if in_gap { next..rest.len().min(next + 1) } else { next..rest.len() };
                let found = rest[candidates].iter_mut().find(|expected| expected.is_missing() && expected.fits(line));
                match found {
                    Some(expected) => expected.from = Some(stream),
                    None if in_gap => self.passed_over.push(line.clone()),
                    None => break,
                }
                heard.pop_front();
            }
        }
    }

    /// Compares a list in any order. Exact lines come first, because lines with `…` would fit several.
    pub fn take_in_any_order(&mut self) -> Result<()> {
        self.expected.sort_by_key(|expected| matches!(&expected.what, What::Line(text) if text.contains('…')));
        let heard = std::mem::take(&mut self.heard.stdout);
        for line in heard {
            match self.expected.iter_mut().find(|expected| expected.is_missing() && expected.fits(&line)) {
                Some(one) => one.from = Some(Stream::Stdout),
                None => self.heard.stdout.push_back(line),
            }
        }
        if self.expected.iter().any(|expected| matches!(expected.what, What::Gap)) {
            self.heard.stdout.clear();
        }
        ensure!(self.is_settled(), "{}", self.report());
        self.has_nothing_left()
    }

    /// Whether the first line has come.
    pub fn has_begun(&self) -> bool {
        self.expected.first().is_none_or(|expected| !expected.is_missing())
    }

    /// Whether its first line says how to exit, so that the program keeps running.
    pub fn says_how_to_exit(&self) -> bool {
        self.has_begun()
            && matches!(self.expected.first(), Some(Expected { what: What::Line(text), .. }) if text.contains("CTRL+C"))
    }

    /// Whether everything that the text shows has come.
    pub fn is_settled(&self) -> bool {
        !self.expected.iter().any(Expected::is_missing)
    }

    /// An error if the program has printed more than the text shows.
    pub fn has_nothing_left(&self) -> Result<()> {
        match self.heard.stdout.iter().chain(&self.heard.stderr).next() {
            Some(line) => bail!("the text does not show, of `{}`:\n{line}", self.command),
            None => Ok(()),
        }
    }

    /// What is missing, and what has come instead.
    pub fn report(&self) -> String {
        let mut report = format!("\nin the terminal of `{}`", self.command);
        if let Some(expected) = self.expected.iter().find(|expected| expected.is_missing()) {
            let text = match &expected.what {
                What::Line(text) => text,
                _ => "^C",
            };
            report += &format!("\nmissing: {text}   (line {} of the text)", expected.line);
        }
        for line in self.heard.stdout.iter().chain(&self.heard.stderr) {
            report += &format!("\nprinted: {line}");
        }
        for line in &self.passed_over[self.passed_over.len().saturating_sub(5)..] {
            report += &format!("\nhidden by …: {line}");
        }
        report
    }
}

impl Expected {
    fn is_missing(&self) -> bool {
        self.from.is_none() && !matches!(self.what, What::Gap)
    }

    fn fits(&self, line: &str) -> bool {
        matches!(&self.what, What::Line(text) if fits(text, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the lines, each with its stream, are what the text shows.
    fn shows(text: &[&str], lines: &[(Stream, &str)]) -> bool {
        let mut terminal = Terminal::default();
        terminal.begin("", (1..).zip(text.iter().map(|line| (*line).to_owned())).collect());
        lines.iter().for_each(|(stream, line)| terminal.heard(*stream, line));
        terminal.take_lines();
        terminal.is_settled() && terminal.has_nothing_left().is_ok()
    }

    #[test]
    fn each_line_must_come_and_no_other() {
        use Stream::{Stderr, Stdout};
        assert!(shows(&["a", "b"], &[(Stdout, "a"), (Stdout, "b")]));
        assert!(shows(&["a", "Error: b"], &[(Stderr, "Error: b"), (Stdout, "a")]));
        assert!(shows(&["a", "…", "z"], &[(Stdout, "a"), (Stdout, "m"), (Stderr, "n"), (Stdout, "z")]));
        assert!(shows(&["…", "m", "", "z"], &[(Stdout, ""), (Stdout, "m"), (Stdout, ""), (Stdout, "z")]));
        for (text, lines) in [
            (&["a", "b"][..], &[(Stdout, "a"), (Stdout, "c")][..]),
            (&["a", "b"], &[(Stdout, "a")]),
            (&["a"], &[(Stdout, "a"), (Stdout, "b")]),
            (&["a"], &[(Stdout, "a"), (Stderr, "Error: b")]),
            (&["a", "b"], &[(Stdout, "b"), (Stdout, "a")]),
            (&["a", "…", "z"], &[(Stdout, "a"), (Stdout, "y")]),
            (&["…", "m", "z"], &[(Stdout, "z"), (Stdout, "m")]),
        ] {
            assert!(!shows(text, lines), "{text:?} {lines:?}");
        }
    }
}
