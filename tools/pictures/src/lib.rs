//! Draws the pictures of the chapters, as SVG.
//!
//! The module `chapters` says what a picture shows, in the words of AMQP. `topology` and `sequence` lay it out, and
//! `svg` gives all pictures the same look, in light and in dark mode. `cargo pictures` writes the files. A test
//! compares them with what it would write.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod chapters;
mod sequence;
mod svg;
mod topology;

use std::path::PathBuf;

pub use chapters::all;

/// A picture that has been drawn.
pub struct Picture {
    /// The name of its file, without `.svg`.
    pub name: &'static str,
    /// The content of its file.
    pub svg: String,
}

/// The directory of the pictures.
pub fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/images"))
}
