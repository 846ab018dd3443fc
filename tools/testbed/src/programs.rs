//! Builds the lesson programs of this workspace with cargo.

use std::{
    collections::BTreeMap,
    env,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// Builds the lesson programs (those of the workspace's default members under `src/bin`), and returns the path of each by
/// its name. Calls `progress` with the name of each crate that is compiled, and with cargo's reason if it has to wait.
///
/// # Errors
/// When cargo cannot be run, or a program does not compile. The error then contains the compiler's output.
pub async fn build_programs(progress: impl Fn(&str)) -> Result<BTreeMap<String, PathBuf>> {
    build(&["--bins"], progress).await
}

/// Builds the workspace's examples, and returns the path of each by its name. `cargo test --workspace` builds them in the
/// same way, so that after it there is nothing to compile.
///
/// # Errors
/// As [`build_programs`].
pub async fn build_examples() -> Result<BTreeMap<String, PathBuf>> {
    build(&["--workspace", "--examples"], |_| ()).await
}

async fn build(what: &[&str], progress: impl Fn(&str)) -> Result<BTreeMap<String, PathBuf>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let colour = if std::io::stderr().is_terminal() { "always" } else { "never" };
    let mut build = Command::new(cargo);
    // Cargo has set variables about this program's package. If they were passed on, build scripts that read them (`ring`'s)
    // would run again, and all crates that depend on them would be compiled again: now, and at the next cargo command.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            build.env_remove(name);
        }
    }
    let mut build = build
        // The path of each program comes as JSON on standard output, messages for people on standard error.
        .args(["build", "--message-format", "json-render-diagnostics", "--color", colour])
        .args(what)
        .current_dir(workspace)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run cargo, which builds the lesson programs")?;
    let messages = build.stdout.take().context("cargo's standard output")?;
    let words = build.stderr.take().context("cargo's standard error")?;

    let programs = async {
        let mut lines = BufReader::new(messages).lines();
        let mut programs = BTreeMap::new();
        while let Some(line) = lines.next_line().await? {
            programs.extend(program(&line));
        }
        anyhow::Ok(programs)
    };
    let complaints = async {
        let mut lines = BufReader::new(words).lines();
        let mut complaints = String::new();
        while let Some(line) = lines.next_line().await? {
            match step(&anstream::adapter::strip_str(&line).to_string()) {
                Some(step) => progress(step),
                None => complaints += &format!("{line}\n"),
            }
        }
        anyhow::Ok(complaints)
    };
    let (programs, complaints) = tokio::try_join!(programs, complaints)?;
    if !build.wait().await?.success() {
        bail!("the lesson programs do not compile:\n{complaints}");
    }
    Ok(programs)
}

/// The name and the path of the program, if this message of cargo is about a program.
fn program(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}

/// What cargo is doing now, from a line of its output: `   Compiling url v2.5.0` becomes `url`.
fn step(line: &str) -> Option<&str> {
    let (verb, rest) = line.trim_start().split_once(' ')?;
    match verb {
        "Compiling" => rest.split(' ').next(),
        "Blocking" | "Downloading" | "Downloaded" | "Updating" | "Locking" => Some(line.trim_start()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{program, step};

    #[test]
    fn only_messages_with_an_executable_are_about_a_program() {
        let built = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"send"},"executable":"/target/debug/send"}"#;
        let (name, path) = program(built).unwrap();
        assert_eq!((name.as_str(), path.as_path()), ("send", Path::new("/target/debug/send")));
        assert!(program(r#"{"reason":"compiler-artifact","target":{"name":"url"},"executable":null}"#).is_none());
        assert!(program(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(program("not JSON").is_none());
    }

    #[test]
    fn progress_names_what_is_compiled() {
        assert_eq!(step("   Compiling common v0.1.0 (/home/ana/common)"), Some("common"));
        assert_eq!(
            step("    Blocking waiting for file lock on build directory"),
            Some("Blocking waiting for file lock on build directory")
        );
        assert_eq!(step("error[E0425]: cannot find value `x` in this scope"), None);
        assert_eq!(step(""), None);
    }
}
