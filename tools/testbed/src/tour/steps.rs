//! The steps of a lesson. Each step does something, shows it, and checks it.

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

/// How long a step waits for what it expects. The longest task of a lesson takes three seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a chapter stops.
pub(super) enum Stop {
    /// Something was not as expected. The next chapter is played.
    Difference(Difference),
    /// The tour itself cannot continue.
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

/// The result of a step.
pub(super) type Step<T = ()> = Result<T, Stop>;

/// Does the steps of one chapter. Its programs end when this value is dropped.
pub(super) struct Steps<'tour> {
    page: &'tour mut Page,
    pause: Option<&'tour mut Pause>,
    programs: &'tour BTreeMap<String, PathBuf>,
    url: &'tour str,
    processes: Processes,
    /// The queues that were empty and unused when the chapter began. Their later messages are from this chapter.
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

    /// Shows the drawing of the chapter. From here on, the names in round brackets are the names of its programs.
    pub(super) fn drawing(&mut self, drawing: &str) -> Step {
        Ok(self.page.drawing(drawing)?)
    }

    /// Says what comes next. With `--pause`, waits for Enter.
    pub(super) async fn say(&mut self, text: &str) -> Step {
        self.page.say(text)?;
        if let Some(pause) = &mut self.pause {
            pause.wait().await;
        }
        Ok(())
    }

    /// Says what the last steps have shown. They were all as expected.
    pub(super) fn seen(&mut self, text: &str) -> Step {
        Ok(self.page.seen(text)?)
    }

    /// Shows a table.
    pub(super) fn table(&mut self, head: &[&[&str]], rows: &[Vec<String>]) -> Step {
        Ok(self.page.table(head, rows)?)
    }

    /// Checks that the queue has no old messages, and no other consumer that would take ours. It may also not exist.
    pub(super) async fn is_free(&mut self, queue: &str, reader: &str) -> Step {
        let Queue { messages, consumers } = queue::look(self.url, queue).await?;
        let advice = match (messages, consumers) {
            (0, 0) => {
                self.queues.push(queue.to_owned());
                return Ok(());
            }
            (_, 0) => format!(
                "remove them with `cargo run --bin {reader}` or `cargo ctl purge_queue {queue}`; or unset AMQP_URL, \
                 and the tour starts a RabbitMQ of its own"
            ),
            _ => "stop its consumers; or unset AMQP_URL, and the tour starts a RabbitMQ of its own".to_owned(),
        };
        Err(Stop::Difference(Difference {
            expected: format!("the queue `{queue}` is empty and has no consumers"),
            seen: format!("it has {} and {}", count(messages, "message"), count(consumers, "consumer")),
            advice: Some(advice),
        }))
    }

    /// Starts a program that keeps running, with its arguments. `name` is its name in the drawing.
    pub(super) fn start(&mut self, name: &str, command: &str) -> Step {
        self.page.command(name, &typed(command))?;
        let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
        let path = self.programs.get(program).with_context(|| format!("the workspace has no program `{program}`"))?;
        let program = Program::new(path)
            .args(arguments.split_whitespace())
            .url(self.url)
            // The default of the programs, even if the environment of the tour sets something else.
            .env("RUST_LOG", "warn,common=info");
        Ok(self.processes.start(name, program)?)
    }

    /// Runs a program to its end. It must print these lines, and end with exit code 0.
    pub(super) async fn run(&mut self, name: &str, command: &str, lines: &[&str]) -> Step {
        self.start(name, command)?;
        for line in lines {
            self.expect(name, line).await?;
        }
        self.ends(name, 0).await
    }

    /// Runs a program to its end. It must print these lines, then `error` on standard error, and end with exit code 1.
    pub(super) async fn run_failing(&mut self, name: &str, command: &str, lines: &[&str], error: &str) -> Step {
        self.start(name, command)?;
        for line in lines {
            self.expect(name, line).await?;
        }
        self.next_line_is(&[name], Stream::Stderr, error).await?;
        self.ends(name, 1).await
    }

    /// The next line that the program prints must be this one.
    pub(super) async fn expect(&mut self, name: &str, line: &str) -> Step {
        self.next_line_is(&[name], Stream::Stdout, line).await.map(drop)
    }

    /// The next line that any of these programs prints must be this one. Returns the program's name.
    pub(super) async fn expect_of_one(&mut self, names: &[&str], line: &str) -> Step<String> {
        self.next_line_is(names, Stream::Stdout, line).await
    }

    /// Ends a program, as Ctrl-C in its terminal does.
    pub(super) async fn ctrl_c(&mut self, name: &str) -> Step {
        self.page.output(name, Stream::Stdout, "^C")?;
        self.end(name, Running::interrupt).await
    }

    /// Kills a program. It cannot close its connection.
    pub(super) async fn kill(&mut self, name: &str) -> Step {
        let id = self.processes.process(name)?.running.as_ref().and_then(Running::id);
        self.page.command("", &format!("kill -9 {}   # {name}", id.unwrap_or_default()))?;
        self.end(name, Running::kill).await
    }

    /// Waits until the queue has no consumers. The broker notices the end of a program a little later.
    pub(super) async fn has_no_consumers(&mut self, queue: &str) -> Step {
        let deadline = Instant::now() + PATIENCE;
        // No event reports this, so ask again and again.
        while let consumers @ 1.. = queue::look(self.url, queue).await?.consumers {
            if Instant::now() > deadline {
                return differs(&format!("the queue `{queue}` has no consumers"), count(consumers, "consumer"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// How often the program has printed the line.
    pub(super) fn copies(&self, name: &str, line: &str) -> usize {
        self.processes.copies(name, line)
    }

    /// Ends the programs that still run, and checks that no program has printed or done anything unexpected.
    pub(super) async fn close(&mut self) -> Step {
        if let Some(gone) = self.processes.all().iter().find(|process| process.stays && process.running.is_none()) {
            let name = gone.name.clone();
            return differs(&format!("{name} keeps running"), self.silence(&[&name]));
        }
        for running in self.processes.all().iter_mut().filter_map(|process| process.running.as_mut()) {
            // A program that has ended by now cannot be interrupted. Its output is checked below.
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

    /// Empties the queues for the next tour on the same broker, however the chapter ended. For instance, a worker may have
    /// ended before it acknowledged its last task.
    pub(super) async fn tidy_up(mut self) -> Step {
        self.processes = Processes::default();
        for queue in std::mem::take(&mut self.queues) {
            self.has_no_consumers(&queue).await?;
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

    /// Waits until the program has ended. It must end with this exit code.
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

    /// Waits for the next line of one of these programs, which must be this one. Returns the program's name.
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

    /// Shows the next line that any program prints, or notes that a program has ended. False if nothing comes in time.
    async fn show_next(&mut self, deadline: Instant) -> Step<bool> {
        let Ok(next) = timeout_at(deadline, self.processes.next()).await else { return Ok(false) };
        if let Some(Line { name, stream, text }) = next? {
            self.page.output(&name, stream, &text)?;
        }
        Ok(true)
    }

    /// Describes that nothing comes from these programs.
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
        // `--` before the first argument: without it, cargo would take arguments that begin with `-`.
        typed += if number == 1 { " -- " } else { " " };
        // Without quotes the shell would take it for names of files, or for a comment.
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
