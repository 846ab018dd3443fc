//! Faults made for real, against everything that `common` promises to bring back: what `cargo faults` and `cargo soak`
//! are made of.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod fault;
pub mod logs;
pub mod losses;
pub mod matrix;
pub mod numbers;
pub mod panics;
pub mod pump;
pub mod reader;
pub mod seat;
pub mod soak;
pub mod trouble;
pub mod users;
pub mod wait;
