//! The words in which the scripts of the lessons are written. Each does something, shows it, and checks it.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    page::{Difference, Page},
    pause::Pause,
    processes::{Line, Processes},
    queue::{self, Queue},
};
use crate::{Program, Running, Stream};

/// How long anything that is expected may take. The longest task of a lesson takes three seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a chapter does not go on.
pub(super) enum Stop {
    /// What was seen is not what was expected: the next chapter may fare better.
    Difference(Difference),
    /// The tour itself cannot go on.
    Failure(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Stop {
        Stop::Failure(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Failure(error.into())
    }
}

/// What each act of a script gives.
pub(super) type Step<T = ()> = Result<T, Stop>;

/// Where one chapter is played. Its programs end with this value.
pub(super) struct Steps<'tour> {
    page: &'tour mut Page,
    pause: Option<&'tour mut Pause>,
    programs: &'tour BTreeMap<String, PathBuf>,
    url: &'tour str,
    processes: Processes,
    /// The queues that were free when the chapter began: what is in them later is ours.
    queues: Vec<String>,
}

impl<'tour> Steps<'tour> {
    pub(super) fn new(
        page: &'tour mut Page,
        pause: Option<&'tour mut Pause>,
        programs: &'tour BTreeMap<String, PathBuf>,
        url: &'tour str,
    ) -> Steps<'tour> {
        Steps { page, pause, programs, url, processes: Processes::default(), queues: Vec::new() }
    }

    /// Shows the topology. The names in round brackets are those of the programs from here on.
    pub(super) fn drawing(&mut self, drawing: &str) -> Step {
        Ok(self.page.drawing(drawing)?)
    }

    /// Says what comes next; with `--pause` it comes when Enter is pressed.
    pub(super) async fn say(&mut self, text: &str) -> Step {
        self.page.say(text)?;
        if let Some(pause) = &mut self.pause {
            pause.wait().await;
        }
        Ok(())
    }

    /// Says what has been seen, as all of it was as expected.
    pub(super) fn seen(&mut self, text: &str) -> Step {
        Ok(self.page.seen(text)?)
    }

    /// Shows a table.
    pub(super) fn table(&mut self, head: &[&[&str]], rows: &[Vec<String>]) -> Step {
        Ok(self.page.table(head, rows)?)
    }

    /// The queue holds no messages from before, and nobody takes ours away. One that does not exist is fine.
    pub(super) async fn is_free(&mut self, queue: &str, reader: &str) -> Step {
        let Queue { messages, consumers } = queue::look(self.url, queue).await?;
        let advice = match (messages, consumers) {
            (0, 0) => {
                self.queues.push(queue.to_owned());
                return Ok(());
            }
            (_, 0) => format!(
                "let `cargo run --bin {reader}` take them out, or `cargo ctl purge_queue {queue}`; or unset \
                 AMQP_URL: the tour then starts a RabbitMQ of its own"
            ),
            _ => "end whatever reads from it; or unset AMQP_URL: the tour then starts a RabbitMQ of its own".to_owned(),
        };
        Err(Stop::Difference(Difference {
            expected: format!("the queue `{queue}` is empty, and nobody reads from it"),
            seen: format!("it has {} and {}", count(messages, "message"), count(consumers, "consumer")),
            advice: Some(advice),
        }))
    }

    /// Starts a program that is to run on, with its arguments, as `name` in the drawing.
    pub(super) fn start(&mut self, name: &str, command: &str) -> Step {
        self.page.command(name, &typed(command))?;
        let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
        let path = self.programs.get(program).with_context(|| format!("the workspace has no program `{program}`"))?;
        let program = Program::new(path)
            .args(arguments.split_whitespace())
            .url(self.url)
            // What the programs log when nobody asks for anything else, whatever the environment says.
            .env("RUST_LOG", "warn,common=info");
        Ok(self.processes.start(name, program)?)
    }

    /// Runs a program to its end: it prints these lines, and ends well.
    pub(super) async fn run(&mut self, name: &str, command: &str, lines: &[&str]) -> Step {
        self.start(name, command)?;
        for line in lines {
            self.expect(name, line).await?;
        }
        self.ends(name, 0).await
    }

    /// Runs a program to its end: it prints these lines, then this one on standard error, and ends with 1.
    pub(super) async fn run_failing(&mut self, name: &str, command: &str, lines: &[&str], error: &str) -> Step {
        self.start(name, command)?;
        for line in lines {
            self.expect(name, line).await?;
        }
        self.next_line_is(&[name], Stream::Stderr, error).await?;
        self.ends(name, 1).await
    }

    /// The next line that the program prints is this one.
    pub(super) async fn expect(&mut self, name: &str, line: &str) -> Step {
        self.next_line_is(&[name], Stream::Stdout, line).await.map(drop)
    }

    /// The next line that any of these programs prints is this one. Says whose it is.
    pub(super) async fn expect_of_one(&mut self, names: &[&str], line: &str) -> Step<String> {
        self.next_line_is(names, Stream::Stdout, line).await
    }

    /// Ends a program, as Ctrl-C in its terminal does.
    pub(super) async fn ctrl_c(&mut self, name: &str) -> Step {
        self.page.output(name, Stream::Stdout, "^C")?;
        self.end(name, Running::interrupt).await
    }

    /// Kills a program: no chance to say good-bye.
    pub(super) async fn kill(&mut self, name: &str) -> Step {
        let id = self.processes.process(name)?.running.as_ref().and_then(Running::id);
        self.page.command("", &format!("kill -9 {}   # {name}", id.unwrap_or_default()))?;
        self.end(name, Running::kill).await
    }

    /// Waits until the broker knows that nobody reads from the queue: it learns of the end of a program a little later.
    pub(super) async fn nobody_reads_from(&mut self, queue: &str) -> Step {
        let deadline = Instant::now() + PATIENCE;
        // The broker tells nobody of it; asking again is all there is.
        while let consumers @ 1.. = queue::look(self.url, queue).await?.consumers {
            if Instant::now() > deadline {
                return differs(&format!("nobody reads from `{queue}`"), count(consumers, "consumer"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// How often the program has printed the line.
    pub(super) fn copies(&self, name: &str, line: &str) -> usize {
        self.processes.copies(name, line)
    }

    /// Ends what still runs. Nobody may have printed, or done, anything that was not expected.
    pub(super) async fn close(&mut self) -> Step {
        if let Some(gone) = self.processes.all().iter().find(|process| process.stays && process.running.is_none()) {
            let name = gone.name.clone();
            return differs(&format!("{name} goes on running"), self.silence(&[&name]));
        }
        for running in self.processes.all().iter_mut().filter_map(|process| process.running.as_mut()) {
            // One that has ended by now cannot be interrupted; what it has said is looked at below.
            drop(running.interrupt());
        }
        let names: Vec<String> = self.processes.all().iter().map(|process| process.name.clone()).collect();
        for name in names {
            self.has_ended(&name).await?;
        }
        match self.processes.unread() {
            None => Ok(()),
            Some((name, line)) => differs(&format!("nothing more from {name}"), format!("{name} │ {line}")),
        }
    }

    /// Leaves nothing behind for the next tour on the same broker, however the chapter went: a worker that ends has
    /// perhaps not acknowledged its last task.
    pub(super) async fn tidy_up(mut self) -> Step {
        self.processes = Processes::default();
        for queue in std::mem::take(&mut self.queues) {
            self.nobody_reads_from(&queue).await?;
            queue::purge(self.url, &queue).await?;
        }
        Ok(())
    }

    async fn end(&mut self, name: &str, how: impl FnOnce(&mut Running) -> Result<()>) -> Step {
        let process = self.processes.process(name)?;
        process.stays = false;
        if let Some(running) = &mut process.running {
            how(running)?;
        }
        self.has_ended(name).await
    }

    /// It has ended, with this exit code.
    async fn ends(&mut self, name: &str, code: i32) -> Step {
        self.has_ended(name).await?;
        let process = self.processes.process(name)?;
        process.stays = false;
        if process.code == Some(code) {
            return Ok(());
        }
        differs(&format!("{name} ends with exit code {code}"), self.silence(&[name]))
    }

    async fn has_ended(&mut self, name: &str) -> Step {
        let deadline = Instant::now() + PATIENCE;
        while self.processes.is_running(&[name]) {
            if !self.show_next(deadline).await? {
                return differs(&format!("{name} ends"), self.silence(&[name]));
            }
        }
        Ok(())
    }

    /// Waits for the next line of one of these programs, which has to be this one. Says whose it is.
    async fn next_line_is(&mut self, names: &[&str], stream: Stream, expected: &str) -> Step<String> {
        let deadline = Instant::now() + PATIENCE;
        let described = format!("{} │ {expected}", names.join(" or "));
        loop {
            match self.processes.take_line(names, stream) {
                Some(line) if line.text == expected => return Ok(line.name),
                Some(line) => return differs(&described, format!("{} │ {}", line.name, line.text)),
                None if self.processes.is_running(names) && self.show_next(deadline).await? => (),
                None => return differs(&described, self.silence(names)),
            }
        }
    }

    /// Shows the next thing that any program prints, or takes note of its end. False if nothing comes in time.
    async fn show_next(&mut self, deadline: Instant) -> Step<bool> {
        let Ok(next) = timeout_at(deadline, self.processes.next()).await else { return Ok(false) };
        if let Some(Line { name, stream, text }) = next? {
            self.page.output(&name, stream, &text)?;
        }
        Ok(true)
    }

    /// What is seen when nothing comes from these programs.
    fn silence(&self, names: &[&str]) -> String {
        let nothing = || format!("nothing more from {} for {} s", names.join(" or "), PATIENCE.as_secs());
        self.processes.end_of(names).unwrap_or_else(nothing)
    }
}

fn differs<T>(expected: &str, seen: String) -> Step<T> {
    Err(Stop::Difference(Difference { expected: expected.to_owned(), seen, advice: None }))
}

/// A program and its arguments, as a person types it.
fn typed(command: &str) -> String {
    let mut typed = "cargo run --bin".to_owned();
    for (number, word) in command.split_whitespace().enumerate() {
        // The first argument; before it, cargo would take what begins with `-` for its own.
        typed += if number == 1 { " -- " } else { " " };
        // Or the shell would take it for names of files, or for a comment.
        typed += &if word.contains(['*', '#']) { format!("\"{word}\"") } else { word.to_owned() };
    }
    typed
}

fn count(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::typed;

    #[test]
    fn a_command_can_be_copied_into_a_shell() {
        assert_eq!(typed("send"), "cargo run --bin send");
        assert_eq!(typed("new_task First task."), "cargo run --bin new_task -- First task.");
        assert_eq!(
            typed("receive_logs_topic kern.* lazy.# info"),
            r#"cargo run --bin receive_logs_topic -- "kern.*" "lazy.#" info"#
        );
    }
}
