//! The programs of one chapter, as processes under the names that they have in its drawing.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use futures_util::future::select_all;

use crate::{Program, Running, Stream};

/// The programs that have been started. They end with this value.
#[derive(Default)]
pub(super) struct Cast(Vec<Actor>);

/// A program that has been started.
pub(super) struct Actor {
    pub(super) name: String,
    /// None once it has ended.
    pub(super) running: Option<Running>,
    /// How it has ended; none if by a signal.
    pub(super) code: Option<i32>,
    /// Whether it is to run until the chapter ends.
    pub(super) stays: bool,
    /// What it has printed and nobody has asked for yet.
    unread: VecDeque<(Stream, String)>,
    /// All that it has printed on standard output.
    printed: Vec<String>,
}

/// A line, and who has printed it.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) stream: Stream,
    pub(super) text: String,
}

impl Cast {
    /// Starts a program. It takes the place of the one that had the name before.
    pub(super) fn start(&mut self, name: &str, program: Program) -> Result<()> {
        let actor = Actor {
            name: name.to_owned(),
            running: Some(program.spawn()?),
            code: None,
            stays: true,
            unread: VecDeque::new(),
            printed: Vec::new(),
        };
        self.0.retain(|actor| actor.name != name);
        self.0.push(actor);
        Ok(())
    }

    pub(super) fn actors(&mut self) -> &mut [Actor] {
        &mut self.0
    }

    pub(super) fn actor(&mut self, name: &str) -> Result<&mut Actor> {
        let actor = self.0.iter_mut().find(|actor| actor.name == name);
        actor.with_context(|| format!("`{name}` has not been started"))
    }

    pub(super) fn is_running(&self, names: &[&str]) -> bool {
        self.0.iter().any(|actor| names.contains(&actor.name.as_str()) && actor.running.is_some())
    }

    /// Waits for the next thing that any program does: a line, or none if one has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Line>> {
        let outputs = self.0.iter_mut().enumerate().filter_map(|(at, actor)| {
            let running = actor.running.as_mut()?;
            Some(Box::pin(async move { (at, running.next_output().await) }))
        });
        let outputs: Vec<_> = outputs.collect();
        if outputs.is_empty() {
            return Ok(None);
        }
        // What is dropped here has lost nothing: a line that comes later waits for the next call.
        let ((at, output), ..) = select_all(outputs).await;
        let Some(actor) = self.0.get_mut(at) else { return Ok(None) };
        match output {
            Some((stream, text)) => {
                if stream == Stream::Stdout {
                    actor.printed.push(text.clone());
                }
                actor.unread.push_back((stream, text.clone()));
                Ok(Some(Line { name: actor.name.clone(), stream, text }))
            }
            None => {
                if let Some(running) = actor.running.take() {
                    actor.code = running.wait().await?.code;
                }
                Ok(None)
            }
        }
    }

    /// The next line of one of these programs that nobody has asked for yet.
    pub(super) fn take_line(&mut self, names: &[&str], stream: Stream) -> Option<Line> {
        self.0.iter_mut().filter(|actor| names.contains(&actor.name.as_str())).find_map(|actor| {
            let at = actor.unread.iter().position(|(from, _)| *from == stream)?;
            let (stream, text) = actor.unread.remove(at)?;
            Some(Line { name: actor.name.clone(), stream, text })
        })
    }

    /// How often a program has printed this line.
    pub(super) fn copies(&self, name: &str, line: &str) -> usize {
        let actors = self.0.iter().filter(|actor| actor.name == name);
        actors.flat_map(|actor| &actor.printed).filter(|printed| *printed == line).count()
    }

    /// Why nothing comes from these programs: the end of one, with what it has said of it; else none.
    pub(super) fn end_of(&self, names: &[&str]) -> Option<String> {
        let mut ended = self.0.iter().filter(|actor| actor.running.is_none());
        let actor = ended.find(|actor| names.contains(&actor.name.as_str()))?;
        let end = match actor.code {
            Some(code) => format!("{} has ended with exit code {code}", actor.name),
            None => format!("{} was killed", actor.name),
        };
        let said = actor.unread.iter().find(|(stream, _)| *stream == Stream::Stderr);
        Some(said.map_or(end.clone(), |(_, line)| format!("{end}: {line}")))
    }

    /// A line that nobody has asked for, of any program.
    pub(super) fn unread(&self) -> Option<(&str, &str)> {
        self.0.iter().find_map(|actor| actor.unread.front().map(|(_, line)| (actor.name.as_str(), line.as_str())))
    }
}
