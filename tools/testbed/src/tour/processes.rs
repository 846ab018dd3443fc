//! The programs of one chapter, as processes with the names that they have in its drawing.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use futures_util::future::select_all;

use crate::{Program, Running, Stream};

/// The programs that have been started. They end when this value is dropped.
#[derive(Default)]
pub(super) struct Processes(Vec<Process>);

/// A program that has been started.
pub(super) struct Process {
    pub(super) name: String,
    /// `None` once it has ended.
    pub(super) running: Option<Running>,
    /// Its exit code. `None` if a signal ended it.
    pub(super) code: Option<i32>,
    /// Whether it must run until the chapter ends.
    pub(super) stays: bool,
    /// Lines that it has printed and that no step has asked for yet.
    unread: VecDeque<(Stream, String)>,
    /// Everything that it has printed on standard output.
    printed: Vec<String>,
}

/// A line, and the program that has printed it.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) stream: Stream,
    pub(super) text: String,
}

impl Processes {
    /// Starts a program. It replaces an earlier program with the same name.
    pub(super) fn start(&mut self, name: &str, program: Program) -> Result<()> {
        let process = Process {
            name: name.to_owned(),
            running: Some(program.spawn()?),
            code: None,
            stays: true,
            unread: VecDeque::new(),
            printed: Vec::new(),
        };
        self.0.retain(|process| process.name != name);
        self.0.push(process);
        Ok(())
    }

    pub(super) fn all(&mut self) -> &mut [Process] {
        &mut self.0
    }

    pub(super) fn process(&mut self, name: &str) -> Result<&mut Process> {
        let process = self.0.iter_mut().find(|process| process.name == name);
        process.with_context(|| format!("`{name}` has not been started"))
    }

    pub(super) fn is_running(&self, names: &[&str]) -> bool {
        self.0.iter().any(|process| names.contains(&process.name.as_str()) && process.running.is_some())
    }

    /// Waits for the next line of any program. `None` if a program has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Line>> {
        let outputs = self.0.iter_mut().enumerate().filter_map(|(at, process)| {
            let running = process.running.as_mut()?;
            Some(Box::pin(async move { (at, running.next_output().await) }))
        });
        let outputs: Vec<_> = outputs.collect();
        if outputs.is_empty() {
            return Ok(None);
        }
        // Dropping the other futures loses no line: later lines wait for the next call.
        let ((at, output), ..) = select_all(outputs).await;
        let Some(process) = self.0.get_mut(at) else { return Ok(None) };
        match output {
            Some((stream, text)) => {
                if stream == Stream::Stdout {
                    process.printed.push(text.clone());
                }
                process.unread.push_back((stream, text.clone()));
                Ok(Some(Line { name: process.name.clone(), stream, text }))
            }
            None => {
                if let Some(running) = process.running.take() {
                    process.code = running.wait().await?.code;
                }
                Ok(None)
            }
        }
    }

    /// The next line of one of these programs that no step has asked for yet.
    pub(super) fn take_line(&mut self, names: &[&str], stream: Stream) -> Option<Line> {
        self.0.iter_mut().filter(|process| names.contains(&process.name.as_str())).find_map(|process| {
            let at = process.unread.iter().position(|(from, _)| *from == stream)?;
            let (stream, text) = process.unread.remove(at)?;
            Some(Line { name: process.name.clone(), stream, text })
        })
    }

    /// How often a program has printed this line.
    pub(super) fn copies(&self, name: &str, line: &str) -> usize {
        let all = self.0.iter().filter(|process| process.name == name);
        all.flat_map(|process| &process.printed).filter(|printed| *printed == line).count()
    }

    /// Why nothing comes from these programs: how one of them has ended, and its error message. `None` if none has ended.
    pub(super) fn end_of(&self, names: &[&str]) -> Option<String> {
        let mut ended = self.0.iter().filter(|process| process.running.is_none());
        let process = ended.find(|process| names.contains(&process.name.as_str()))?;
        let end = match process.code {
            Some(code) => format!("{} has ended with exit code {code}", process.name),
            None => format!("{} was killed", process.name),
        };
        let said = process.unread.iter().find(|(stream, _)| *stream == Stream::Stderr);
        Some(said.map_or(end.clone(), |(_, line)| format!("{end}: {line}")))
    }

    /// A line of any program that no step has asked for.
    pub(super) fn unread(&self) -> Option<(&str, &str)> {
        self.0.iter().find_map(|process| process.unread.front().map(|(_, line)| (process.name.as_str(), line.as_str())))
    }
}
