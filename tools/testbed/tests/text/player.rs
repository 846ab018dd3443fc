//! Plays the `console` blocks of a text on a RabbitMQ of their own, as a reader would who follows the text.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::select_all;
use testbed::{Broker, Program, Running, Stream, build_examples, build_programs};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};
use url::Url;

use crate::{
    console::{Command, Console, Item, What},
    terminal::Terminal,
};

/// How long a block that ends with `^C` may still print lines before the next block is played. This is longer than a
/// pause between two of its lines.
const LULL: Duration = Duration::from_secs(4);

/// How long a person needs to look up from a line and press Ctrl-C.
const BREATH: Duration = Duration::from_millis(500);

/// How long `cargo broker` may take to start.
const STARTING: Duration = Duration::from_secs(120);

/// The programs and examples of all chapters, by name.
pub async fn programs() -> Result<&'static BTreeMap<String, PathBuf>> {
    static PROGRAMS: OnceCell<BTreeMap<String, PathBuf>> = OnceCell::const_new();
    let build = async || {
        let mut programs = build_programs(|_| ()).await?;
        programs.extend(build_examples().await?);
        Ok(programs)
    };
    PROGRAMS.get_or_try_init(build).await
}

/// The program with this name.
pub async fn program(name: &str) -> Result<Program> {
    let path = programs().await?.get(name).with_context(|| format!("there is no program `{name}`"))?;
    Ok(Program::new(path))
}

/// Plays the blocks of one section of a text, on a RabbitMQ and in terminals.
pub struct Player<'a> {
    broker: &'a Broker,
    /// How long to wait for the next line of any program.
    patience: Duration,
    terminals: BTreeMap<u32, Terminal>,
}

impl<'a> Player<'a> {
    pub fn new(broker: &'a Broker, patience: Duration) -> Player<'a> {
        Player { broker, patience, terminals: BTreeMap::new() }
    }

    /// Plays one block. The programs that it leaves running keep running.
    pub async fn play(&mut self, console: &Console) -> Result<()> {
        // Numbers from 1,000 on are for blocks that do not say which terminal they are.
        let unnamed = 1_000 + self.terminals.len() as u32;
        let id = console.terminal.unwrap_or(unnamed);
        self.terminals.entry(id).or_default();
        let mut items = console.items.iter().peekable();
        let mut goes_on = true;
        while let Some((line, item)) = items.next() {
            match item {
                Item::Command(command) => {
                    let context = || format!("line {line}: $ {command}");
                    self.settle(id).await.with_context(context)?;
                    let mut output = Vec::new();
                    while let Some((line, Item::Output(text))) = items.peek() {
                        output.push((*line, text.clone()));
                        items.next();
                    }
                    goes_on = self.command(id, *line, command, output).await.with_context(context)?;
                }
                Item::Output(text) => self.terminal(id)?.expect(*line, text),
                Item::Interrupt => {
                    self.terminal(id)?.expect_interrupt(*line);
                    // The lines before it may need what other terminals do after this block.
                    if !goes_on {
                        drop(timeout(LULL, self.advance(|player| player.is_settled(id))).await);
                    }
                }
            }
        }
        if goes_on { self.settle(id).await } else { Ok(()) }
    }

    /// Ends a section. All lines that the text shows must have come, and no others.
    pub async fn end(mut self) -> Result<()> {
        let ids: Vec<u32> = self.terminals.keys().copied().collect();
        for id in &ids {
            self.settle_lines(*id).await?;
        }
        for id in ids {
            self.end_program(id).await?;
        }
        Ok(())
    }

    /// Ends the program in this terminal, as a person must who wants to type another command.
    async fn end_program(&mut self, id: u32) -> Result<()> {
        if self.terminal(id)?.running.is_some() {
            // A person is slow enough for a worker to acknowledge the task that it has just reported as done.
            drop(timeout(BREATH, self.advance(|_| false)).await);
        }
        self.terminal(id)?.interrupt()?;
        self.advance(|player| player.terminals[&id].running.is_none()).await?;
        self.terminal(id)?.has_nothing_left()
    }

    fn terminal(&mut self, id: u32) -> Result<&mut Terminal> {
        self.terminals.get_mut(&id).context("no such terminal")
    }

    fn is_settled(&self, id: u32) -> bool {
        self.terminals.get(&id).is_none_or(Terminal::is_settled)
    }

    /// Waits until a terminal has shown everything that the text shows. If its program has ended, it must not have
    /// printed more.
    async fn settle(&mut self, id: u32) -> Result<()> {
        self.settle_lines(id).await?;
        let terminal = self.terminal(id)?;
        if terminal.running.is_none() { terminal.has_nothing_left() } else { Ok(()) }
    }

    async fn settle_lines(&mut self, id: u32) -> Result<()> {
        match self.advance(|player| player.is_settled(id)).await {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error:#}{}", self.terminal(id)?.report()),
        }
    }

    /// Does what a command says. Returns true if it has ended, and false if it keeps running while the text continues.
    async fn command(&mut self, id: u32, line: usize, command: &str, output: Vec<(usize, String)>) -> Result<bool> {
        self.end_program(id).await?;
        let Command { environment, what } = Command::parse(command)?;
        let (program, runs_on) = match what {
            What::Run(name, arguments) => {
                let runs_on = runs_until_ctrl_c(&name).await? && !arguments.iter().any(|one| one == "--help");
                (program(&name).await?.args(arguments.iter().map(|one| self.here(one))), runs_on)
            }
            What::Alias(name, arguments) if name == "tour" => {
                let tour = Program::new(env!("CARGO_BIN_EXE_tour")).deadline(Duration::from_secs(300));
                (tour.args(arguments), false)
            }
            What::Alias(name, _) if name == "broker" => {
                let terminal = self.terminal(id)?;
                terminal.begin(command, output);
                greeting().await?.iter().for_each(|(stream, line)| terminal.heard(*stream, line));
                terminal.take_lines();
                return Ok(true);
            }
            What::Rabbitmqctl(arguments) => return self.rabbitmqctl(id, &arguments, &output).await.map(|()| true),
            What::Export(name, value) => {
                let value = self.here(&value);
                self.terminal(id)?.environment.insert(name, value);
                ensure!(output.is_empty(), "line {}: export prints nothing", line + 1);
                return Ok(true);
            }
            What::Alias(..) | What::Other => bail!("this cannot be run in a test: use a `sh` block"),
        };
        let mut program = program.url(self.broker.url()).deadline(self.patience);
        let terminal = self.terminal(id)?;
        for (name, value) in terminal.environment.iter().chain(&environment) {
            program = program.env(name, value);
        }
        terminal.begin(command, output);
        terminal.running = Some(program.spawn()?);
        let has_ended = |player: &Player<'_>| player.terminals[&id].running.is_none();
        let goes_on = |player: &Player<'_>| {
            let terminal = &player.terminals[&id];
            terminal.says_how_to_exit() || (runs_on && terminal.has_begun())
        };
        let waited = self.advance(|player| has_ended(player) || goes_on(player)).await;
        if let Err(error) = waited {
            bail!("{error:#}{}", self.terminal(id)?.report());
        }
        Ok(self.terminals[&id].running.is_none())
    }

    /// Replaces `localhost:5672` of a text with the address of our RabbitMQ.
    fn here(&self, argument: &str) -> String {
        let Ok(mut url) = Url::parse(argument) else { return argument.to_owned() };
        let is_ours = url.host_str() == Some("localhost") && [None, Some(5672)].contains(&url.port());
        if url.scheme() != "amqp" || !is_ours || url.set_port(Some(self.broker.port())).is_err() {
            return argument.to_owned();
        }
        url.to_string()
    }

    /// Replaces the address of our RabbitMQ with `localhost:5672`, as in a text.
    fn there(broker: &Broker, line: &str) -> String {
        line.replace(&format!("localhost:{}", broker.port()), "localhost:5672")
    }

    /// Asks until the answer is the expected one, because RabbitMQ's lists can be a few seconds old.
    async fn rabbitmqctl(&mut self, id: u32, arguments: &[String], expected: &[(usize, String)]) -> Result<()> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = self.broker.rabbitmqctl(&arguments).await?;
            let mut terminal = Terminal::default();
            terminal.begin("", expected.iter().map(|(line, text)| (*line, words(text))).collect());
            answer.lines().for_each(|line| terminal.heard(Stream::Stdout, &words(line)));
            let difference = match terminal.take_in_any_order() {
                Ok(()) => return Ok(()),
                Err(difference) => difference,
            };
            ensure!(Instant::now() < deadline, "{difference:#}\nit printed\n{answer}");
            // Meanwhile the programs continue. Some of them still have to get a Ctrl-C.
            drop(timeout(Duration::from_millis(200), self.advance(|_| false)).await);
            self.terminal(id)?;
        }
    }

    /// Lets all programs continue until `until` is true.
    async fn advance(&mut self, until: impl Fn(&Player<'_>) -> bool) -> Result<()> {
        let patience = self.patience;
        loop {
            for terminal in self.terminals.values_mut() {
                terminal.go_on()?;
            }
            if until(self) {
                return Ok(());
            }
            let running = self.terminals.values_mut().filter(|terminal| terminal.running.is_some()).map(|terminal| {
                let Terminal { running, heard, .. } = terminal;
                Box::pin(async move {
                    let output = match running.as_mut() {
                        Some(running) => running.next_output().await,
                        None => None,
                    };
                    (running, heard, output)
                })
            });
            let running: Vec<_> = running.collect();
            ensure!(!running.is_empty(), "no program is running that could print it");
            let next = timeout(patience, select_all(running)).await;
            let Ok(((program, heard, output), ..)) = next else { bail!("waited {patience:?} for the next line") };
            match output {
                Some((stream, line)) => heard.push(stream, &Player::there(self.broker, &line)),
                None => {
                    if let Some(program) = program.take() {
                        Running::wait(program).await?;
                    }
                }
            }
        }
    }
}

/// The words of a line with one space between them, because rabbitmqctl separates its columns with tabs.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a program runs until Ctrl-C, as its help says.
async fn runs_until_ctrl_c(name: &str) -> Result<bool> {
    let help = program(name).await?.arg("--help").run().await?;
    Ok(help.stdout.contains("until Ctrl-C"))
}

/// What `cargo broker` prints, with the ports that it would have on a machine without another RabbitMQ.
async fn greeting() -> Result<&'static [(Stream, String)]> {
    static GREETING: OnceCell<Vec<(Stream, String)>> = OnceCell::const_new();
    let greeting = GREETING.get_or_try_init(|| async {
        let mut broker = Program::new(env!("CARGO_BIN_EXE_broker")).spawn()?;
        let mut lines = Vec::new();
        let mut ports = Vec::new();
        loop {
            let next = timeout(STARTING, broker.next_output()).await.context("cargo broker does not start")?;
            let (stream, mut line) = next.context("cargo broker has ended")?;
            for (beginning, usual) in
                [("  --url amqp://guest:guest@localhost:", "5672"), ("Management page: http://localhost:", "15672")]
            {
                if let Some(rest) = line.strip_prefix(beginning) {
                    let port = rest.split(' ').next().unwrap_or_default();
                    ports.push((format!("localhost:{port}"), format!("localhost:{usual}")));
                }
            }
            for (ours, usual) in &ports {
                line = line.replace(ours, usual);
            }
            let is_last = line.starts_with("Press Ctrl-C");
            lines.push((stream, line));
            if is_last {
                break;
            }
        }
        broker.interrupt()?;
        broker.wait().await?;
        anyhow::Ok(lines)
    });
    Ok(greeting.await?)
}
