//! Faults made for real, against everything that `common` promises to bring back: what `cargo faults` and `cargo soak`
//! are made of.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod fault;
pub mod kept_setup;
pub mod logs;
pub mod losses;
pub mod matrix;
pub mod numbered_publisher;
pub mod numbers;
pub mod panics;
pub mod reader;
pub mod soak;
pub mod users;
pub mod wait;
