//! Headers of a message, and the arguments of a declaration (AMQP 0-9-1 field tables): measures how deep they are
//! nested, prints them, and rebuilds them for sending.
//!
//! amqprs's types clone, print, encode and drop themselves by recursion, and their `Display` panics on an empty array.
//! So headers from a stranger are measured first.

use std::{
    fmt::{self, Debug, Write},
    mem::take,
};

use amqprs::{BasicProperties, FieldArray, FieldTable, FieldValue};

use crate::{Error, Result, escaped};

/// How deep tables and arrays may be nested in a header. This is deeper than programs need, and safe on any thread.
pub(crate) const MOST_LEVELS: usize = 64;

/// Whether tables and arrays are nested deeper in it than [`MOST_LEVELS`].
pub(crate) fn is_too_deep(value: &FieldValue) -> bool {
    match value {
        // An array's elements can only be seen in its `Debug` output, unless the array is consumed. The output is
        // stopped in time.
        FieldValue::A(_) | FieldValue::F(_) => has_more_levels(value, MOST_LEVELS),
        _ => false,
    }
}

/// Whether more brackets than `most` are open at a time in its `Debug` output.
pub(crate) fn has_more_levels(value: &impl Debug, most: usize) -> bool {
    write!(Levels { most, open: 0, quoted: false, escaped: false }, "{value:?}").is_err()
}

/// Counts the brackets of `Debug` output, and ends it with an error beyond `most`.
struct Levels {
    most: usize,
    open: usize,
    quoted: bool,
    escaped: bool,
}

impl Write for Levels {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match byte {
                _ if take(&mut self.escaped) => {}
                b'\\' => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                b'[' | b'{' if !self.quoted => self.open += 1,
                b']' | b'}' if !self.quoted => self.open = self.open.saturating_sub(1),
                _ => {}
            }
            if self.open > self.most {
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// Makes the headers ready to be sent. A table with a key that was received twice, or inserted twice, has a wrong
/// length: RabbitMQ would close the connection because of it.
pub(crate) fn rebuild(properties: &mut BasicProperties) -> Result<()> {
    let Some(headers) = properties.headers() else { return Ok(()) };
    if let Some(name) = deepest(headers) {
        return Err(Error::Invalid(format!(
            "header `{name}` is nested deeper than {MOST_LEVELS} levels: receivers could not read it"
        )));
    }
    let headers = rebuilt_table(headers.clone())?;
    properties.with_headers(headers);
    Ok(())
}

/// Makes the arguments of a declaration, a binding or a consumer ready to be sent, for the same reason.
pub(crate) fn rebuilt_arguments(doing: &str, arguments: FieldTable) -> Result<FieldTable> {
    match deepest(&arguments) {
        Some(name) => {
            Err(Error::Invalid(format!("{doing}: argument `{name}` is nested deeper than {MOST_LEVELS} levels")))
        }
        None => rebuilt_table(arguments),
    }
}

fn deepest(headers: &FieldTable) -> Option<&str> {
    let mut entries = headers.as_ref().iter();
    entries.find(|(_, value)| is_too_deep(value)).map(|(name, _)| name.as_ref().as_str())
}

fn rebuilt_table(mut table: FieldTable) -> Result<FieldTable> {
    let mut rebuilt = FieldTable::new();
    let names: Vec<_> = table.as_ref().keys().cloned().collect();
    for name in names {
        if let Some(value) = table.remove(&name) {
            rebuilt.insert(name, rebuilt_value(value)?);
        }
    }
    Ok(rebuilt)
}

fn rebuilt_value(value: FieldValue) -> Result<FieldValue> {
    Ok(match value {
        FieldValue::F(table) => FieldValue::F(rebuilt_table(table)?),
        FieldValue::A(array) => {
            let values: Result<Vec<_>> = Vec::from(array).into_iter().map(rebuilt_value).collect();
            FieldValue::A(FieldArray::try_from(values?)?)
        }
        value => value,
    })
}

/// Headers for people: on one line, names in alphabetical order, text in quotes and escaped.
pub(crate) struct Shown<'a>(pub &'a FieldTable);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_table(f, self.0)
    }
}

fn show_table(f: &mut fmt::Formatter<'_>, table: &FieldTable) -> fmt::Result {
    let mut entries: Vec<_> = table.as_ref().iter().map(|(name, value)| (name.as_ref(), value)).collect();
    entries.sort_by_key(|(name, _)| *name);
    f.write_str("{ ")?;
    for (index, (name, value)) in entries.into_iter().enumerate() {
        let separator = if index > 0 { ", " } else { "" };
        write!(f, "{separator}{}: ", escaped(name))?;
        show(f, value)?;
    }
    f.write_str(if table.as_ref().is_empty() { "}" } else { " }" })
}

fn show_array(f: &mut fmt::Formatter<'_>, values: &[FieldValue]) -> fmt::Result {
    f.write_str("[ ")?;
    for (index, value) in values.iter().enumerate() {
        f.write_str(if index > 0 { ", " } else { "" })?;
        show(f, value)?;
    }
    f.write_str(if values.is_empty() { "]" } else { " ]" })
}

fn show(f: &mut fmt::Formatter<'_>, value: &FieldValue) -> fmt::Result {
    match value {
        FieldValue::t(value) => write!(f, "{value}"),
        FieldValue::b(value) => write!(f, "{value}"),
        FieldValue::B(value) => write!(f, "{value}"),
        FieldValue::s(value) => write!(f, "{value}"),
        FieldValue::u(value) => write!(f, "{value}"),
        FieldValue::I(value) => write!(f, "{value}"),
        FieldValue::i(value) => write!(f, "{value}"),
        FieldValue::l(value) => write!(f, "{value}"),
        // With their decimal point: 1.0, NaN, inf.
        FieldValue::f(value) => write!(f, "{value:?}"),
        FieldValue::d(value) => write!(f, "{value:?}"),
        // `Decimal(2, 1234)` is 12.34.
        FieldValue::D(value) => write!(f, "{value}"),
        FieldValue::S(value) => write!(f, "{:?}", escaped(value.as_ref())),
        FieldValue::T(seconds) => write!(f, "Timestamp({seconds})"),
        FieldValue::V => f.write_str("()"),
        FieldValue::x(value) => write!(f, "b\"{}\"", Vec::from(value.clone()).escape_ascii()),
        // amqprs never receives such a value, but a program may have made one.
        FieldValue::A(_) | FieldValue::F(_) if is_too_deep(value) => f.write_str("…"),
        FieldValue::A(array) => show_array(f, &Vec::from(array.clone())),
        FieldValue::F(table) => show_table(f, table),
    }
}

#[cfg(test)]
mod tests {
    use amqprs::{FieldArray, FieldTable, FieldValue};

    use super::{MOST_LEVELS, Shown, is_too_deep};

    fn in_table(value: FieldValue) -> Result<FieldValue, Box<dyn std::error::Error>> {
        let mut table = FieldTable::new();
        // A bracket in a name is not counted.
        table.insert("[{\"\\".try_into()?, value);
        Ok(FieldValue::F(table))
    }

    fn in_array(value: FieldValue) -> Result<FieldValue, Box<dyn std::error::Error>> {
        Ok(FieldValue::A(FieldArray::try_from(vec!["]}\"".into(), value])?))
    }

    #[test]
    fn tables_and_arrays_are_measured_alike() -> Result<(), Box<dyn std::error::Error>> {
        for wrap in [in_table, in_array] {
            let mut value = FieldValue::V;
            for _ in 0..MOST_LEVELS {
                assert!(!is_too_deep(&value));
                value = wrap(value)?;
            }
            assert!(!is_too_deep(&value));
            assert!(is_too_deep(&wrap(value.clone())?));
            // Many elements beside each other are not deep.
            let wide = FieldArray::try_from(vec![in_array(FieldValue::V)?; 1_000])?;
            assert!(!is_too_deep(&FieldValue::A(wide)));
        }
        Ok(())
    }

    /// RabbitMQ refuses these; another broker may not.
    #[test]
    fn numbers_that_are_none_are_shown() -> Result<(), Box<dyn std::error::Error>> {
        let mut table = FieldTable::new();
        table.insert("d".try_into()?, FieldValue::d(f64::NAN));
        table.insert("f".try_into()?, FieldValue::f(f32::NEG_INFINITY));
        assert_eq!(Shown(&table).to_string(), "{ d: NaN, f: -inf }");
        Ok(())
    }
}
