//! Checks that every Rust block stands in the programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::markdown::{Block, Document, workspace};

/// A source file.
pub struct Source {
    path: PathBuf,
    lines: Vec<String>,
}

/// The sources that a text's code can come from: the programs of its directory and `common`. For a text in the root:
/// all sources.
pub fn sources(document: &Document) -> Result<Vec<Source>> {
    let own = document.path.parent().filter(|path| !path.as_os_str().is_empty());
    let directories = match own {
        Some(own) => vec![own.to_owned(), "common".into()],
        None => ["common", "hello_world", "work_queues", "pub_sub", "routing", "topics", "rpc", "tools/testbed"]
            .map(PathBuf::from)
            .to_vec(),
    };
    let mut sources = Vec::new();
    for directory in directories {
        for part in ["src", "examples", "tests"] {
            collect(&workspace().join(&directory).join(part), &mut sources)?;
        }
    }
    Ok(sources)
}

fn collect(directory: &Path, sources: &mut Vec<Source>) -> Result<()> {
    // Not every crate has every part.
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            sources.push(Source { path, lines: text.lines().map(str::to_owned).collect() });
        }
    }
    Ok(())
}

/// Returns an error that says what is wrong with a Rust block.
pub fn check(block: &Block, sources: &[Source]) -> Result<(), String> {
    let lines: Vec<&str> = block.text.lines().collect();
    let pieces: Vec<&[&str]> =
        lines.split(|line| is_elision(line)).map(trim).filter(|piece| !piece.is_empty()).collect();
    let furthest = sources.iter().map(|source| (follow(&pieces, source), source)).max_by_key(|(count, _)| *count);
    match furthest {
        None => Err("there is no source to compare it with".to_owned()),
        Some((count, _)) if count == pieces.len() => Ok(()),
        Some((0, _)) => Err(format!("its beginning stands in no program:\n{}", pieces[0].join("\n"))),
        Some((count, source)) => {
            let rest = pieces[count].join("\n");
            Err(format!("{} has its beginning, but not, further down:\n{rest}", source.path.display()))
        }
    }
}

/// The lines that a `diff` block removes, as a Rust block.
pub fn taken_away(change: &Block) -> Block {
    let lines: Vec<&str> = change.text.lines().filter_map(|line| line.strip_prefix('-')).collect();
    Block { text: lines.join("\n…\n"), ..change.clone() }
}

/// A line that stands for lines left out.
fn is_elision(line: &str) -> bool {
    ["…", "// …"].contains(&line.trim())
}

fn trim<'a, 'b>(mut piece: &'a [&'b str]) -> &'a [&'b str] {
    while let [first, rest @ ..] = piece
        && first.trim().is_empty()
    {
        piece = rest;
    }
    while let [rest @ .., last] = piece
        && last.trim().is_empty()
    {
        piece = rest;
    }
    piece
}

/// How many of the pieces stand in a source, one after the other.
fn follow(pieces: &[&[&str]], source: &Source) -> usize {
    let mut from = 0;
    for (count, piece) in pieces.iter().enumerate() {
        let places = from..(source.lines.len() + 1).saturating_sub(piece.len());
        let Some(at) = places.into_iter().find(|at| is_at(piece, &source.lines[*at..])) else { return count };
        from = at + piece.len();
    }
    pieces.len()
}

/// Whether the lines are equal to the piece, if all of them may be indented more, or less, by the same width.
fn is_at(piece: &[&str], lines: &[String]) -> bool {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let shift = |ours: &str, theirs: &str| indentation(theirs).wrapping_sub(indentation(ours));
    let first = shift(piece[0], &lines[0]);
    piece
        .iter()
        .zip(lines)
        .all(|(ours, theirs)| ours.trim() == theirs.trim() && (ours.trim().is_empty() || shift(ours, theirs) == first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        let program = "fn main() {\n    let a = 1;\n\n    if a == 1 {\n        b();\n    }\n    c();\n}\n";
        let source = Source { path: "main.rs".into(), lines: program.lines().map(str::to_owned).collect() };
        let block = Block { language: Some("rust".to_owned()), text: text.to_owned(), line: 1, section: 0 };
        check(&block, &[source])
    }

    #[test]
    fn lines_of_a_program_are_found_whatever_their_indentation() {
        for text in
            ["let a = 1;\n\nif a == 1 {\n    b();\n}\n", "    c();\n}\n", "fn main() {\n    // …\n    c();\n…\n"]
        {
            assert_eq!(checked(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_letter_a_missing_line_another_order_and_a_lost_indentation_are_noticed() {
        for text in [
            "let a = 2;\n",
            "let a = 1;\nif a == 1 {\n",
            "c();\n// …\nlet a = 1;\n",
            "if a == 1 {\nb();\n}\n",
            "let a = 1; // …\n",
        ] {
            assert!(checked(text).is_err(), "{text}");
        }
    }
}
