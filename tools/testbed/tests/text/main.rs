//! Checks the texts against the programs: each Rust block stands in a program, each command runs and prints what the
//! text shows, and the target of each link exists.
//!
//! A failure names the file and the line. CONTRIBUTING.md says how to write a text for this test.

mod code;
mod console;
mod links;
mod markdown;
mod player;
mod terminal;

use std::{path::Path, time::Duration};

use anyhow::{Context, Error, Result, ensure};
use futures_util::future::join_all;
use testbed::{Broker, Program};
use tokio::sync::Semaphore;

use console::{Command, Console, What};
use markdown::{Block, Document, documents};
use player::Player;

/// The languages of code blocks. A block in another language would not be checked, and an indented block has no
/// language.
const LANGUAGES: [&str; 9] = ["console", "diff", "json", "python", "rust", "sh", "text", "toml", "powershell"];

#[test]
fn every_rust_block_stands_in_the_programs() -> Result<()> {
    let mut failures = String::new();
    for document in documents()? {
        let sources = code::sources(&document)?;
        for block in &document.blocks {
            let checked = match block.language.as_deref() {
                Some("rust") => code::check(block, &sources),
                Some("diff") => code::check(&code::taken_away(block), &sources),
                _ => Ok(()),
            };
            if let Err(error) = checked {
                failures += &format!("\n{}:{}: {error}\n", document.path.display(), block.line);
            }
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

#[test]
fn every_link_and_every_picture_is_there() -> Result<()> {
    let documents = documents()?;
    let mut failures = String::new();
    for document in &documents {
        for link in &document.links {
            if let Err(error) = links::check(document, link, &documents) {
                failures += &format!("\n{}:{}: {}: {error}", document.path.display(), link.line, link.target);
            }
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

#[test]
fn every_code_block_says_what_it_is() -> Result<()> {
    let mut failures = String::new();
    for document in documents()? {
        for block in &document.blocks {
            let language = block.language.as_deref().unwrap_or("indented");
            if !LANGUAGES.contains(&language) {
                let (path, line) = (document.path.display(), block.line);
                failures += &format!("\n{path}:{line}: `{language}` is none of {}", LANGUAGES.join(", "));
            }
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

/// The commands that are not run with their output: those in `sh` blocks and in paragraphs.
#[tokio::test]
async fn every_command_names_a_program_and_arguments_that_it_takes() -> Result<()> {
    let mut failures = String::new();
    for document in documents()? {
        for (line, command) in commands(&document) {
            if let Err(error) = is_valid(&command).await {
                failures += &format!("\n{}:{line}: `{command}`: {error:#}", document.path.display());
            }
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

fn commands(document: &Document) -> Vec<(usize, String)> {
    let blocks =
        document.blocks.iter().filter(|block| ["sh", "powershell"].map(Some).contains(&block.language.as_deref()));
    let lines = blocks.flat_map(|block| (block.line..).zip(block.text.lines().map(str::to_owned)));
    let all = lines.chain(document.codes.iter().cloned());
    // A command with a part to fill in is not checked, and `cargo run` alone is only a name.
    let is_one = |command: &str| command.contains("cargo ") && !command.contains(['…', '<']) && command != "cargo run";
    all.filter(|(_, command)| is_one(command)).collect()
}

async fn is_valid(command: &str) -> Result<()> {
    match Command::parse(command)?.what {
        What::Run(name, mut arguments) => {
            // An address without a broker, instead of the broker that the text names.
            const NOWHERE: &str = "amqp://127.0.0.1:1";
            if let Some(at) = arguments.iter().position(|argument| argument == "--url") {
                *arguments.get_mut(at + 1).context("--url needs a value")? = NOWHERE.to_owned();
            }
            let finished = player::program(&name).await?.args(arguments).url(NOWHERE).run().await?;
            ensure!(finished.code != Some(2), "{}", finished.stderr);
        }
        What::Alias(name, arguments) => {
            let program = match name.as_str() {
                "tour" => env!("CARGO_BIN_EXE_tour"),
                "broker" => env!("CARGO_BIN_EXE_broker"),
                // Not built by this test. The alias exists, as the parser has checked.
                _ => return Ok(()),
            };
            let finished = Program::new(program).args(arguments).arg("--help").run().await?;
            ensure!(finished.code == Some(0), "{}", finished.stderr);
        }
        _ => (),
    }
    Ok(())
}

/// Plays all texts at the same time, because most of them wait most of the time. This is one test, because the harness
/// runs only as many tests at a time as there are cores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_output_is_what_the_programs_print() -> Result<()> {
    let documents = documents()?;
    let plays = documents
        .iter()
        .map(async |document| play(document).await.with_context(|| document.path.display().to_string()));
    let failures: Vec<Error> = join_all(plays).await.into_iter().filter_map(Result::err).collect();
    let report: String = failures.iter().map(|failure| format!("\n\n{failure:#}")).collect();
    ensure!(failures.is_empty(), "{report}");
    Ok(())
}

/// Plays a text on a broker of its own, because `cargo ctl` shows the whole broker.
async fn play(document: &Document) -> Result<()> {
    // As many at a time as two cores can start.
    static PLACES: Semaphore = Semaphore::const_new(4);
    if !document.blocks.iter().any(is_console) {
        return Ok(());
    }
    let _place = PLACES.acquire().await?;
    player::programs().await?;
    let broker = Broker::start().await?;
    play_on(&broker, document, Duration::from_secs(30)).await?;
    broker.shutdown().await
}

fn is_console(block: &Block) -> bool {
    block.language.as_deref() == Some("console")
}

async fn play_on(broker: &Broker, document: &Document, patience: Duration) -> Result<()> {
    let blocks: Vec<&Block> = document.blocks.iter().filter(|block| is_console(block)).collect();
    for section in blocks.chunk_by(|one, other| one.section == other.section) {
        let mut player = Player::new(broker, patience);
        for block in section {
            let play = async { player.play(&Console::parse(block)?).await };
            play.await.with_context(|| format!("the block at line {}", block.line))?;
        }
        player.end().await.with_context(|| format!("the section with the block at line {}", section[0].line))?;
    }
    Ok(())
}

/// The beginning of a possible chapter. It must pass.
const SAMPLE: &str = r#"
## The receiver waits

```console
# terminal 1
$ cargo run --bin receive
 [*] Waiting for messages. To exit press CTRL+C
 [x] Received Hello World!
^C
```

```console
# terminal 2
$ cargo run --bin send
 [x] Sent 'Hello World!'
```

## The queue keeps the message

```console
$ cargo run --bin send
 [x] Sent 'Hello World!'
$ cargo ctl list_queues name messages
Timeout: 60.0 seconds ...
Listing queues for vhost / ...
name    messages
hello   1
$ cargo run --bin send -- --url amqp://guest:wrong@localhost:5672
Error: RabbitMQ at localhost:5672 refused …
```

```console
# terminal 1
$ cargo run --bin receive
 [*] Waiting …
 [x] Received Hello World!
```

```console
# terminal 1
^C
```
"#;

/// Each block is wrong in one thing, and leaves no messages for the next one.
const WRONG: [(&str, &str); 8] = [
    ("a wrong letter", "$ cargo run --bin emit_log\n [x] Sent info: Hello world!\n"),
    ("a missing line", "$ cargo run --bin emit_log\n"),
    ("a line too many", "$ cargo run --bin emit_log\n [x] Sent info: Hello World!\n [x] Done\n"),
    ("another error", "$ cargo run --bin rpc_client -- --timeout 1\n [x] Requesting fib(30)\nError: nobody is there\n"),
    ("an unknown argument", "$ cargo run --bin emit_log -- --urk x\n [x] Sent info: Hello World!\n"),
    ("an unknown program", "$ cargo run --bin emit_logs\n [x] Sent info: Hello World!\n"),
    ("a waiting line", "$ cargo run --bin receive_logs\n [*] Waiting for messages. To exit press CTRL+C\n^C\n"),
    ("another list", "$ cargo ctl list_vhosts --silent\nname\n//\n"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_is_right_passes_and_one_with_a_wrong_letter_does_not() -> Result<()> {
    player::programs().await?;
    let broker = Broker::shared().await?;
    let play = async |text: &str, patience| {
        play_on(broker, &markdown::parse(Path::new("sample.md"), text), Duration::from_secs(patience)).await
    };
    play(SAMPLE, 30).await?;
    for (what, block) in WRONG {
        let played = play(&format!("```console\n{block}```\n"), 4).await;
        ensure!(played.is_err(), "{what} passes");
    }
    Ok(())
}
