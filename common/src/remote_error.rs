//! The error of the other side of a remote procedure call, as it travels.

use std::{any::type_name, error, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::escaped;

/// What went wrong at the other side of a remote procedure call: its kind, its words, and its arguments.
///
/// `Display` shows it on one line, [`escaped`]. A handler returns it for an error of its own; `?` makes one of any other error.
///
/// ```
/// use common::RemoteError;
///
/// fn half(text: &str) -> Result<u32, RemoteError> {
///     let number: u32 = text.parse()?; // of the kind "ParseIntError"
///     match number % 2 {
///         0 => Ok(number / 2),
///         _ => Err(RemoteError::new("OddNumber", format!("{number} has no half"))),
///     }
/// }
/// assert_eq!(half("abc").unwrap_err().to_string(), "ParseIntError: invalid digit found in string");
/// assert_eq!(half("7").unwrap_err().to_string(), "OddNumber: 7 has no half");
/// ```
// Not a `std::error::Error` itself: else it could not be made of every other one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoteError {
    /// Its kind, by which a caller can act: the name of an exception in Python, of an error type in Rust. Empty when
    /// the other side sent only a text.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What happened, for people.
    pub message: String,
    /// What the error was made with, as JSON; often the message alone.
    #[serde(default)]
    pub args: Vec<Value>,
}

impl RemoteError {
    /// An error of this kind, with the message for its only argument.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind: kind.into(), args: vec![message.clone().into()], message }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Python's `repr` has the kind in it: ZeroDivisionError('division by zero').
        if self.message.starts_with(&self.kind) {
            write!(f, "{}", escaped(&self.message))
        } else {
            write!(f, "{}: {}", escaped(&self.kind), escaped(&self.message))
        }
    }
}

impl<E: error::Error> From<E> for RemoteError {
    fn from(error: E) -> Self {
        let path = type_name::<E>().split('<').next().unwrap_or_default();
        Self::new(path.rsplit("::").next().unwrap_or_default(), error.to_string())
    }
}
