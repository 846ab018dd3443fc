//! Each public function is shown somewhere: in a lesson, or in an example of the documentation.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// The places where a user reads code, besides the documentation.
const LESSONS: [&str; 6] = ["hello_world", "work_queues", "pub_sub", "routing", "topics", "rpc"];

#[test]
fn each_public_function_is_in_an_example() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut examples = String::new();
    for lesson in LESSONS {
        for directory in ["src", "examples"] {
            for file in files(&workspace.join(lesson).join(directory))? {
                examples += &fs::read_to_string(file)?;
            }
        }
        examples += &fs::read_to_string(workspace.join(lesson).join("README.md"))?;
    }
    let mut sources = Vec::new();
    for file in files(&workspace.join("common/src"))? {
        let source = fs::read_to_string(&file)?;
        examples += &documented_code(&source);
        sources.push((file, source));
    }
    let exported = exported(&sources);
    let functions: BTreeSet<_> = sources.iter().flat_map(|(_, source)| public_functions(source, &exported)).collect();
    for known in ["try_next", "publish", "quorum_queue", "parse", "register_with"] {
        ensure!(functions.contains(known), "`{known}` was not found among {functions:?}");
    }
    let words: BTreeSet<_> = words(&examples).collect();
    let unseen: Vec<_> = functions.iter().filter(|function| !words.contains(*function)).collect();
    ensure!(unseen.is_empty(), "in no lesson and no example of the documentation: {unseen:?}");
    Ok(())
}

/// The Rust files in a directory, at any depth.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    // Some lessons have no examples.
    let Ok(entries) = fs::read_dir(directory) else { return Ok(found) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().context("a file without an extension")? == "rs" {
            found.push(path);
        }
    }
    Ok(found)
}

/// The names that the crate exports: those in its `pub use`, and those in its public modules.
fn exported(sources: &[(PathBuf, String)]) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for (path, source) in sources {
        let is_public_module = path.ends_with("cli.rs") || path.ends_with("worker/tasks.rs");
        for statement in source.split(';') {
            let statement = statement.trim_start();
            if let Some((_, list)) = statement.split_once("pub use ") {
                names.extend(words(list));
            }
        }
        if is_public_module {
            names.extend(source.lines().filter_map(|line| words(line.strip_prefix("pub ")?).nth(1)));
        }
    }
    names
}

/// The public functions of the exported items.
fn public_functions<'a>(source: &'a str, exported: &BTreeSet<&str>) -> Vec<&'a str> {
    let mut is_exported = false;
    let mut functions = Vec::new();
    for line in source.lines() {
        if line.starts_with("impl") {
            let of = line.split(" for ").last().unwrap_or(line);
            is_exported = words(of).any(|word| exported.contains(word));
        }
        let Some((indent, rest)) = line.split_once("pub ") else { continue };
        let Some(name) = words(rest).skip_while(|word| ["async", "const"].contains(word)).nth(1) else { continue };
        let is_function = rest.contains("fn ") && indent.trim().is_empty();
        if is_function && (if indent.is_empty() { exported.contains(name) } else { is_exported }) {
            functions.push(name);
        }
    }
    functions
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// The code in documentation comments.
fn documented_code(source: &str) -> String {
    let mut code = String::new();
    let mut inside = false;
    for line in source.lines() {
        let line = line.trim_start();
        let Some(text) = line.strip_prefix("///").or(line.strip_prefix("//!")) else { continue };
        match text.trim_start().starts_with("```") {
            true => inside = !inside,
            false if inside => {
                code += text;
                code.push('\n');
            }
            false => {}
        }
    }
    code
}
