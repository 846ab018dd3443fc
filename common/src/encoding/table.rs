//! Tables of arguments and headers, made of plain Rust values.

use std::time::{SystemTime, UNIX_EPOCH};

use amqprs::{FieldTable, FieldValue};

use crate::{Error, Result, encoding::short_string::check_name};

/// A table: the arguments of a binding, an exchange or a consumer, or the headers of a message. If two entries have the
/// same name, the last one is used.
///
/// ```
/// use amqprs::channel::{BasicConsumeArguments, QueueBindArguments};
/// use common::{TableValue, table};
///
/// # fn main() -> common::Result<()> {
/// let reports = table([("x-match", "all"), ("format", "pdf")])?;
/// let binding = QueueBindArguments::new("reports", "documents", "").arguments(reports).finish();
///
/// let from_the_start = table([("x-stream-offset", 0)])?;
/// let subscription = BasicConsumeArguments::new("events", "").arguments(from_the_start).finish();
///
/// // Values of several types:
/// let headers = table([("colour", TableValue::from("red")), ("size", 5.into())])?;
/// # Ok(())
/// # }
/// ```
///
/// A queue takes its arguments one by one: [`QueueDeclaration::with`](crate::QueueDeclaration::with).
///
/// # Errors
/// [`Invalid`](Error::Invalid) for a name over 255 bytes, or a value that does not fit.
pub fn table<N, V>(entries: impl IntoIterator<Item = (N, V)>) -> Result<FieldTable>
where
    N: AsRef<str>,
    V: Into<TableValue>,
{
    let mut table = FieldTable::new();
    for (name, value) in entries {
        let name = name.as_ref();
        check_name("name of an argument or header", name)?;
        let value = value.into().0.map_err(|error| Error::Invalid(format!("`{name}`: {error}")))?;
        let name = name.try_into()?;
        // Inserting a name twice corrupts amqprs's table (AMQPRS.md, "Header tables").
        table.remove(&name);
        table.insert(name, value);
    }
    Ok(table)
}

/// A value in a [`table`], made from a plain Rust value: a text, a whole number, a `bool`, an `f64`, a [`SystemTime`]
/// (AMQP has whole seconds), another table, or amqprs's own [`FieldValue`].
///
/// A number that does not fit into AMQP's signed 64 bits is an error of the call that uses it, not a panic.
///
/// ```
/// use common::TableValue;
///
/// let texts: [TableValue; 2] = ["reject-publish".into(), String::from("dead letters").into()];
/// let numbers: [TableValue; 3] = [5.into(), 60_000_u32.into(), (-1_i64).into()];
/// let flag: TableValue = true.into();
/// ```
#[derive(Debug, Clone)]
pub struct TableValue(pub(crate) std::result::Result<FieldValue, String>);

impl TableValue {
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.0 {
            Ok(FieldValue::S(text)) => Some(text.as_ref()),
            _ => None,
        }
    }
}

/// RabbitMQ compares whole numbers by their value, not by their size on the wire.
macro_rules! whole_numbers {
    ($($type:ty)*) => {$(
        impl From<$type> for TableValue {
            fn from(number: $type) -> Self {
                let fits = i64::try_from(number).map(FieldValue::l);
                Self(fits.map_err(|_| format!("{number} does not fit into AMQP's signed 64 bits")))
            }
        }
    )*};
}
whole_numbers!(i8 i16 i32 i64 isize u8 u16 u32 u64 usize);

impl From<&str> for TableValue {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for TableValue {
    fn from(text: String) -> Self {
        Self(text.try_into().map(FieldValue::S).map_err(|_| "the text is longer than AMQP allows".into()))
    }
}

impl From<bool> for TableValue {
    fn from(flag: bool) -> Self {
        Self(Ok(FieldValue::t(flag)))
    }
}

impl From<f64> for TableValue {
    fn from(number: f64) -> Self {
        Self(Ok(FieldValue::d(number)))
    }
}

impl From<SystemTime> for TableValue {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).map(|since| FieldValue::T(since.as_secs()));
        Self(since.map_err(|_| "a time before 1970".into()))
    }
}

impl From<FieldTable> for TableValue {
    fn from(table: FieldTable) -> Self {
        Self(Ok(FieldValue::F(table)))
    }
}

impl From<FieldValue> for TableValue {
    fn from(value: FieldValue) -> Self {
        Self(Ok(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_become_fields_of_their_type_and_the_last_of_a_name_counts() {
        let values: [(&str, TableValue); 7] = [
            ("a", 5_u8.into()),
            ("a", (-7).into()),
            ("b", true.into()),
            ("c", "text".into()),
            ("d", 0.5.into()),
            ("e", (UNIX_EPOCH + std::time::Duration::from_millis(1_500)).into()),
            ("f", table([("inside", u64::from(u32::MAX))]).expect("a table").into()),
        ];
        let table = table(values).expect("a table");
        let get = |name: &str| table.get(&name.try_into().expect("a name")).cloned();
        assert_eq!(get("a"), Some(FieldValue::l(-7)));
        assert_eq!(get("b"), Some(FieldValue::t(true)));
        assert_eq!(get("c"), Some("text".into()));
        assert_eq!(get("d"), Some(FieldValue::d(0.5)));
        assert_eq!(get("e"), Some(FieldValue::T(1)));
        assert!(matches!(get("f"), Some(FieldValue::F(_))));
        // The length that is sent counts each name once.
        let mut plain = FieldTable::new();
        for (name, value) in table.as_ref() {
            plain.insert(name.clone(), value.clone());
        }
        assert_eq!(plain, table);
    }

    #[test]
    fn values_that_do_not_fit_are_an_error_and_not_a_panic() {
        let long = "n".repeat(256);
        for (outcome, words) in [
            (table([(&*long, 1)]), "256 bytes long; AMQP allows 255"),
            (table([("n", u64::MAX)]), "`n`: 18446744073709551615 does not fit"),
            (table([("n", UNIX_EPOCH - std::time::Duration::from_secs(1))]), "before 1970"),
        ] {
            match outcome {
                Err(Error::Invalid(text)) => assert!(text.contains(words), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
