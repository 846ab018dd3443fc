//! The error of the other side of a remote procedure call, in the form in which it is sent.

use std::{any::type_name, error, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::escaped;

/// What went wrong at the other side of a remote procedure call: its kind, its words, and its arguments.
///
/// `Display` shows it on one line, [`escaped`]. A handler can return it as its own error. `?` makes it from any other
/// error.
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
// It is not a `std::error::Error` itself. Otherwise it could not be made from every other error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoteError {
    /// Its kind, which a caller can match: the name of an exception in Python, of an error type in Rust. Empty if the
    /// other side sent only a text.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What happened, for people.
    pub message: String,
    /// The arguments that the error was made with, as JSON. Often only the message.
    #[serde(default)]
    pub args: Vec<Value>,
}

impl RemoteError {
    /// An error of this kind. Its only argument is the message.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind: kind.into(), args: vec![message.clone().into()], message }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Python's `repr` contains the kind: ZeroDivisionError('division by zero').
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
