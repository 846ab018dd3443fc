//! Makes one site of all texts, with mdBook.
//!
//!     cargo book --open
//!
//! mdBook wants all that it reads in one directory, and takes everything there for a part of the book. So the texts that
//! `SUMMARY.md` names, and the files that they link to, are copied to `target/book/src` first, at their own places: links
//! from one to another hold. In the end all links of the pages are checked.
#![forbid(unsafe_code)]

mod pages;
mod texts;

use std::{fs, io::ErrorKind, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Makes one site of all texts: target/book/html/index.html.
#[derive(Parser)]
#[command(bin_name = "cargo book", after_help = "Example: cargo book --open")]
struct Args {
    /// Show it in a browser
    #[arg(long)]
    open: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let book = workspace.join("target/book");
    if book.exists() {
        fs::remove_dir_all(&book).with_context(|| format!("cannot remove {}", book.display()))?;
    }
    texts::copy(workspace, &book.join("src"))?;
    for file in ["book.toml", "book.css"] {
        fs::copy(workspace.join("tools/book").join(file), book.join(file))?;
    }

    let mut mdbook = Command::new("mdbook");
    mdbook.arg("build").arg(&book).args(args.open.then_some("--open"));
    let output = match mdbook.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("mdbook is not installed: `cargo install mdbook --locked` does that, in some minutes")
        }
        output => output.context("cannot run mdbook")?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    if !output.status.success() || said.contains("WARN") || said.contains("ERROR") {
        bail!("mdbook is not content with the texts");
    }
    let count = pages::check(&book.join("html"))?;
    println!("{count} pages: {}", book.join("html/index.html").display());
    Ok(())
}
