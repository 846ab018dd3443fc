//! Parses a `console` block: commands, and what they print.
//!
//! ```text
//! # terminal 2                  which terminal this is; without it, one of its own
//! $ cargo run --bin receive     a command
//!  [*] Waiting for messages…    a line of output; … stands for any text in a line, or alone for any lines
//! ^C                            Ctrl-C
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::markdown::Block;

/// A `console` block.
#[derive(Debug)]
pub struct Console {
    pub terminal: Option<u32>,
    pub items: Vec<(usize, Item)>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Command(String),
    Output(String),
    Interrupt,
}

impl Console {
    pub fn parse(block: &Block) -> Result<Console> {
        let mut console = Console { terminal: None, items: Vec::new() };
        for (number, line) in (block.line..).zip(block.text.lines()) {
            let first = number == block.line;
            let item = match line.split_at_checked(2) {
                Some(("# ", rest)) if first => {
                    let terminal = rest.trim().strip_prefix("terminal ").and_then(|number| number.parse().ok());
                    console.terminal = Some(terminal.with_context(|| format!("line {number}: not `# terminal N`"))?);
                    continue;
                }
                Some(("$ ", command)) => Item::Command(command.trim_end().to_owned()),
                _ if line.trim() == "^C" => Item::Interrupt,
                // What cargo itself prints depends on what has been built before.
                _ if ["Compiling ", "Finished ", "Running "].iter().any(|verb| line.trim_start().starts_with(verb)) => {
                    continue;
                }
                _ => Item::Output(line.trim_end().to_owned()),
            };
            console.items.push((number, item));
        }
        ensure!(!console.items.is_empty(), "line {}: an empty block", block.line);
        Ok(console)
    }
}

/// A command line that a text may contain.
#[derive(Debug, PartialEq)]
pub struct Command {
    /// Variables that are set only for this command: `RUST_LOG=debug cargo …`.
    pub environment: BTreeMap<String, String>,
    pub what: What,
}

#[derive(Debug, PartialEq)]
pub enum What {
    /// A program or an example of a chapter, and its arguments.
    Run(String, Vec<String>),
    /// `cargo broker` and the other aliases.
    Alias(String, Vec<String>),
    /// `cargo ctl`.
    Rabbitmqctl(Vec<String>),
    /// `export`: for all later commands in the terminal.
    Export(String, String),
    /// Other commands of cargo, which are not checked.
    Other,
}

/// The aliases of this workspace, from `.cargo/config.toml`.
pub fn aliases() -> Vec<&'static str> {
    let lines = include_str!("../../../../.cargo/config.toml").lines();
    lines.filter_map(|line| line.split_once(" = \"").map(|(name, _)| name)).collect()
}

/// The subcommands of cargo, and of tools for it, that a text may contain.
const CARGO: [&str; 10] = ["add", "bench", "build", "clippy", "deny", "doc", "fmt", "install", "test", "vendor"];

impl Command {
    pub fn parse(line: &str) -> Result<Command> {
        let mut words = shlex::split(line).with_context(|| format!("a quote is not closed: {line}"))?;
        // Where the output goes does not matter to the program.
        let end = words.iter().position(|word| [">", "|"].contains(&word.as_str()));
        words.truncate(end.unwrap_or(words.len()));
        let is_variable = |word: &&String| word.split_once('=').is_some_and(|(name, _)| is_name(name));
        let count = words.iter().take_while(is_variable).count();
        let (variables, words) = words.split_at(count);
        let environment = variables.iter().filter_map(|word| word.split_once('='));
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let strings: Vec<&str> = words.iter().map(String::as_str).collect();
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let what = match strings.as_slice() {
            ["cargo", "run", arguments @ ..] => run(arguments)?,
            ["cargo", "ctl", arguments @ ..] => What::Rabbitmqctl(owned(arguments)),
            ["cargo", name, arguments @ ..] if aliases().contains(name) => {
                What::Alias((*name).to_owned(), owned(arguments))
            }
            ["cargo", name, ..] if CARGO.contains(name) => What::Other,
            ["export", assignment] => match assignment.split_once('=') {
                Some((name, value)) if is_name(name) => What::Export(name.to_owned(), value.to_owned()),
                _ => bail!("this sets nothing: {line}"),
            },
            _ => bail!("this cannot be checked: {line}"),
        };
        Ok(Command { environment, what })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The arguments of `cargo run`.
fn run(arguments: &[&str]) -> Result<What> {
    let mut words = arguments.iter();
    let mut program = None;
    let mut rest: Vec<String> = Vec::new();
    while let Some(word) = words.next() {
        match *word {
            "--bin" | "--example" => program = words.next(),
            "-p" | "--package" => drop(words.next().context("which package?")?),
            "-q" | "--quiet" | "--release" => (),
            "--" => break,
            // After the program's first argument, cargo takes no arguments for itself.
            other if !other.starts_with('-') => {
                rest.push(other.to_owned());
                break;
            }
            other => bail!("cargo run {other} cannot be checked"),
        }
    }
    rest.extend(words.map(|word| (*word).to_owned()));
    let program = program.context("it does not say which program: --bin or --example")?;
    Ok(What::Run((*program).to_owned(), rest))
}

/// Whether a line is the expected one. `…` stands for any text.
pub fn fits(expected: &str, line: &str) -> bool {
    let line = line.trim_end();
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_stand_for_any_text_and_nothing_else_does() {
        for (expected, line) in
            [("a", "a"), ("a…", "abc"), ("…c", "abc"), ("a…c…e", "abcde"), ("…", ""), ("a…b…b", "abb")]
        {
            assert!(fits(expected, line), "{expected} {line}");
        }
        for (expected, line) in [("a", "b"), ("a", "ab"), (" a", "a"), ("a…", "ba"), ("a…c…e", "aecd"), ("a…bb", "ab")]
        {
            assert!(!fits(expected, line), "{expected} {line}");
        }
    }

    #[test]
    fn a_command_line_is_understood_as_a_shell_does() {
        let run = |program: &str, arguments: &[&str]| {
            What::Run(program.to_owned(), arguments.iter().map(|word| (*word).to_owned()).collect())
        };
        for (line, what) in [
            ("cargo run --bin send", run("send", &[])),
            ("cargo run -q --bin new_task -- A task..", run("new_task", &["A", "task.."])),
            ("cargo run --bin new_task First. --url x", run("new_task", &["First.", "--url", "x"])),
            ("cargo run -p topics --example a -- \"kern.*\" '#'", run("a", &["kern.*", "#"])),
            ("cargo test --workspace", What::Other),
        ] {
            assert_eq!(Command::parse(line).unwrap().what, what, "{line}");
        }
        let command = Command::parse("RUST_LOG=common=debug cargo tour --lesson rpc").unwrap();
        assert_eq!(command.environment["RUST_LOG"], "common=debug");
        assert_eq!(command.what, What::Alias("tour".to_owned(), vec!["--lesson".to_owned(), "rpc".to_owned()]));
        let listing = What::Rabbitmqctl(vec!["list_queues".to_owned()]);
        assert_eq!(Command::parse("cargo ctl list_queues").unwrap().what, listing);
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        for line in
            ["rm -r /", "cargo trou", "cargo run", "cargo run --bin", "rabbitmqctl status", "export x", "cargo run \"a"]
        {
            assert!(Command::parse(line).is_err(), "{line}");
        }
    }
}
