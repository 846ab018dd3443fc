//! Programs as child processes. The child is this test binary itself: it runs one of the tests below, which does what
//! an environment variable says.

#![allow(clippy::unwrap_used)] // Clippy knows tests by `#[test]`, not their helpers.

use std::{
    io::{Write, stdin, stdout},
    time::Duration,
};

use testbed::{Program, Stream};

const SCRIPT: &str = "TESTBED_PROGRAM_SCRIPT";

/// The child. Without the variable it is a test that passes.
#[test]
fn child() {
    let Ok(script) = std::env::var(SCRIPT) else {
        return;
    };
    for word in script.split(' ') {
        let (what, argument) = word.split_once(':').unwrap_or((word, ""));
        match what {
            "out" => println!("{argument}"),
            "err" => eprintln!("{argument}"),
            "flood" => (0..5_000).for_each(|n| eprintln!("{argument} {n}")),
            "partial" => {
                print!("{argument}");
                stdout().flush().unwrap();
            }
            "url" => println!("{:?}", std::env::var("AMQP_URL").ok()),
            "hang" => std::thread::sleep(Duration::from_secs(600)),
            "stdin" => println!("{}", stdin().read_line(&mut String::new()).unwrap()),
            "exit" => std::process::exit(argument.parse().unwrap()),
            other => panic!("no such word: {other}"),
        }
    }
}

fn program(script: &str) -> Program {
    Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--quiet"])
        .env(SCRIPT, script)
}

/// Skips what the test harness prints before the child's first line.
async fn past_the_harness(running: &mut testbed::Running) {
    while !running.line().await.unwrap().starts_with("running") {}
}

#[tokio::test]
async fn lines_come_one_by_one_in_order() {
    let mut running = program("out:one err:aside out:two exit:0").spawn().unwrap();
    past_the_harness(&mut running).await;
    running.expect("one").await.unwrap();
    running.expect("two").await.unwrap();
    let aside = running.stderr_line_containing("asi").await.unwrap();
    assert_eq!(aside, "aside");
    assert_eq!(running.wait().await.unwrap().code, Some(0));
}

#[tokio::test]
async fn an_unexpected_line_shows_all_that_was_printed() {
    let mut running = program("out:one err:aside out:two hang").spawn().unwrap();
    past_the_harness(&mut running).await;
    running.stderr_line_containing("aside").await.unwrap();
    let error = running.expect("two").await.unwrap_err().to_string();
    for part in ["expected the line \"two\", got \"one\"", "aside"] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_line_that_does_not_come_is_an_error_within_the_deadline() {
    let mut running = program("partial:half hang").deadline(Duration::from_millis(500)).spawn().unwrap();
    past_the_harness(&mut running).await;
    let error = running.line().await.unwrap_err().to_string();
    assert!(error.contains("waited 500ms for a line"), "{error}");
    assert!(error.contains("--nocapture"), "{error}");
}

#[tokio::test]
async fn a_program_that_ends_too_early_is_an_error_at_once() {
    let mut running = program("err:reason exit:3").spawn().unwrap();
    past_the_harness(&mut running).await;
    let error = running.line().await.unwrap_err().to_string();
    assert!(error.contains("which ended: exit"), "{error}");
    assert!(error.contains("reason"), "{error}");
}

#[tokio::test]
async fn a_program_that_does_not_end_is_an_error_and_killed() {
    let error = program("out:here hang").deadline(Duration::from_secs(1)).run().await.unwrap_err().to_string();
    assert!(error.contains("has not ended after 1s"), "{error}");
    assert!(error.contains("here"), "{error}");
}

#[tokio::test]
async fn unread_output_does_not_block_the_program() {
    let finished = program("flood:noise out:end exit:0").run().await.unwrap();
    assert!(finished.stdout.ends_with("end\n"), "{}", finished.stdout);
    assert_eq!(finished.stderr.lines().count(), 5_000);
    assert_eq!(finished.code, Some(0));
}

#[tokio::test]
async fn a_program_has_the_url_it_is_given_and_no_other() {
    // Cargo sets no `AMQP_URL`, but a person may. An empty script would hide the difference.
    let given = program("url exit:0").url("amqp://here").run().await.unwrap();
    assert!(given.stdout.contains("Some(\"amqp://here\")"), "{}", given.stdout);
    let none = program("url exit:0").run().await.unwrap();
    assert!(none.stdout.contains("None"), "{}", none.stdout);
}

#[tokio::test]
async fn a_program_has_no_input() {
    let finished = program("stdin exit:0").run().await.unwrap();
    assert!(finished.stdout.ends_with("0\n"), "{}", finished.stdout);
}

#[tokio::test]
async fn output_comes_as_it_is_printed_until_the_end() {
    let mut running = program("out:one err:two exit:0").spawn().unwrap();
    let mut seen = Vec::new();
    while let Some(output) = running.next_output().await {
        seen.push(output);
    }
    assert!(seen.contains(&(Stream::Stdout, "one".to_owned())), "{seen:?}");
    assert!(seen.contains(&(Stream::Stderr, "two".to_owned())), "{seen:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_killed_program_has_no_exit_code() {
    for end in [testbed::Running::kill, testbed::Running::interrupt] {
        let mut running = program("out:ready hang").spawn().unwrap();
        past_the_harness(&mut running).await;
        running.expect("ready").await.unwrap();
        end(&mut running).unwrap();
        assert_eq!(running.wait().await.unwrap().code, None);
    }
}

/// If the owner of a program is killed, the program ends, too. The sign is its standard error, a pipe that ends when no
/// process holds it open any more.
#[cfg(unix)]
#[tokio::test]
async fn a_program_does_not_outlive_its_killed_owner() {
    let mut owner = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner", "--nocapture", "--quiet"])
        .env(SCRIPT, "owner")
        .spawn()
        .unwrap();
    let line = owner.stderr_line_containing("my program is").await.unwrap();
    let id: i32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    let id = nix::unistd::Pid::from_raw(id);
    nix::sys::signal::kill(id, None).unwrap();
    owner.kill().unwrap();
    owner.wait().await.unwrap();
    // No event reports the end of a process that is not our child.
    let mut tries = 0;
    while nix::sys::signal::kill(id, None).is_ok() && !is_zombie(id) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tries += 1;
        assert!(tries < 500, "process {id} is still there");
    }
}

/// Dead, but its new parent has not yet waited for it. In a container without an init it stays in this state.
#[cfg(unix)]
fn is_zombie(id: nix::unistd::Pid) -> bool {
    let state = std::process::Command::new("ps").args(["-o", "stat=", "-p", &id.to_string()]).output().unwrap();
    state.stdout.starts_with(b"Z")
}

/// The owner of a program, itself a child of the test above.
#[cfg(unix)]
#[tokio::test]
async fn owner() {
    if std::env::var(SCRIPT).is_ok_and(|script| script == "owner") {
        let mut running = program("out:ready hang").spawn().unwrap();
        past_the_harness(&mut running).await;
        running.expect("ready").await.unwrap();
        eprintln!("my program is {}", running.id().unwrap());
        std::future::pending::<()>().await;
    }
}
