//! amqprs keeps the arguments of a queue's declaration private. This module reads what must be known from their debug
//! print.

use amqprs::channel::QueueDeclareArguments;

use crate::{
    Error, Result,
    encoding::{
        frame_size::around_arguments,
        headers::{MOST_LEVELS, has_more_levels},
        short_string::check_name,
    },
};

/// Without an answer, RabbitMQ's refusal would hit the next call.
pub(crate) fn check_answered(no_wait: bool) -> Result<()> {
    if no_wait { Err(Error::Invalid("no_wait would hide the broker's answer; leave it off".into())) } else { Ok(()) }
}

/// Facts about a declaration's arguments.
pub(crate) struct Checked {
    pub arguments: QueueDeclareArguments,
    pub name: String,
    /// In bytes, as a frame.
    pub size: usize,
    pub exclusive: bool,
    /// Neither durable nor exclusive: RabbitMQ 4.3 may close the connection for it.
    pub shared_and_transient: bool,
}

pub(crate) fn check_printed(arguments: QueueDeclareArguments) -> Result<Checked> {
    // Two brackets are around the values: the brackets of the arguments and of their table.
    if has_more_levels(&arguments, MOST_LEVELS + 2) {
        return Err(Error::Invalid(format!(
            "cannot declare a queue: one of its arguments is nested deeper than {MOST_LEVELS} levels"
        )));
    }
    let print = format!("{arguments:?}");
    let unknown = || Error::Invalid("this version of amqprs prints queue arguments differently".into());
    let (name, flags, table) = parts(&print).ok_or_else(unknown)?;
    // The text can only look longer than it is, because its quotes are escaped.
    check_name("queue name", name)?;
    check_answered(flags.contains("no_wait: true"))?;
    let Table { said, real } = Table::printed(table).ok_or_else(unknown)?;
    if said != real {
        return Err(Error::Invalid(format!(
            "cannot declare queue `{name}`: its table of arguments has a wrong length, so RabbitMQ would close the connection; \
             was a name inserted twice? Remove it before you insert it again, or use `classic_queue` or `quorum_queue`"
        )));
    }
    let exclusive = flags.contains("exclusive: true");
    let shared_and_transient = !(exclusive || flags.contains("durable: true") || flags.contains("passive: true"));
    let size = around_arguments(&[name]) + real;
    Ok(Checked { name: name.to_owned(), size, exclusive, shared_and_transient, arguments })
}

/// The name, the flags, and the table.
fn parts(print: &str) -> Option<(&str, &str, &str)> {
    let (_, text) = print.split_once("queue: ")?;
    let (name, rest) = text.split_at(quoted(text)?);
    let (flags, table) = rest.split_once(", arguments: ")?;
    Some((name.strip_prefix('"')?.strip_suffix('"')?, flags, table))
}

/// The length of the text in quotes that this begins with.
fn quoted(print: &str) -> Option<usize> {
    let mut escaped = false;
    let end = print.strip_prefix('"')?.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    })?;
    Some(end + 2)
}

/// The size of a table on the wire, in bytes.
struct Table {
    /// With the length that amqprs has added up and will send.
    said: usize,
    /// With the length of its real content.
    real: usize,
}

impl Table {
    /// Adds up the sizes in the print of a `FieldTable`, such as `FieldTable(7, {ShortStr(4, "name"): t(true)})`.
    fn printed(mut print: &str) -> Option<Self> {
        let length = |print: &str| print.split_once(',')?.0.parse::<usize>().ok();
        let said = 4 + length(print.strip_prefix("FieldTable(")?)?;
        let mut real = 0;
        while let Some(first) = print.chars().next() {
            if first == '"' {
                print = &print[quoted(print)?..];
                continue;
            }
            let end = print.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(print.len());
            let (word, rest) = print.split_at(end);
            real += match (word, rest.strip_prefix('(')) {
                ("V", _) => 1,
                // Values, each with a byte for its type.
                ("t" | "b" | "B", Some(_)) => 2,
                ("s" | "u", Some(_)) => 3,
                ("I" | "i" | "f", Some(_)) => 5,
                ("l" | "d" | "T", Some(_)) => 9,
                ("D" | "S" | "A" | "F" | "x", Some(_)) => 1,
                // What is inside of them.
                ("DecimalValue", Some(_)) => 5,
                ("FieldTable" | "FieldArray", Some(_)) => 4,
                ("LongStr" | "ByteArray", Some(inside)) => 4 + length(inside)?,
                ("ShortStr", Some(inside)) => 1 + length(inside)?,
                // Punctuation, a number, or `true`.
                ("", _) | (_, None) => 0,
                _ => return None,
            };
            print = &print[end.max(first.len_utf8())..];
        }
        Some(Self { said, real })
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use amqprs::{DecimalValue, FieldArray, FieldTable, FieldValue};

    use super::Table;

    fn of_every_type() -> Result<FieldTable, Box<dyn Error>> {
        let mut inside = FieldTable::new();
        inside.insert("V".try_into()?, FieldValue::V);
        inside.insert("t(".try_into()?, FieldValue::t(true));
        let values = [
            FieldValue::t(false),
            FieldValue::b(-1),
            FieldValue::B(1),
            FieldValue::s(-300),
            FieldValue::u(300),
            FieldValue::I(-70_000),
            FieldValue::i(70_000),
            FieldValue::l(i64::MIN),
            FieldValue::f(f32::NAN),
            FieldValue::d(1e300),
            FieldValue::d(f64::NEG_INFINITY),
            FieldValue::D(DecimalValue::new(2, 1234)),
            "text \"V, S(LongStr(9, \\".into(),
            "ü\n".into(),
            FieldValue::A(FieldArray::new()),
            FieldValue::A(FieldArray::try_from(vec![FieldValue::V, "in an array".into()])?),
            FieldValue::T(1_700_000_000),
            FieldValue::F(FieldTable::new()),
            FieldValue::F(inside),
            FieldValue::V,
            FieldValue::x(b"\0\xff, V".to_vec().try_into()?),
        ];
        let mut table = FieldTable::new();
        for (number, value) in values.into_iter().enumerate() {
            table.insert(format!("{number} \"V\"").try_into()?, value);
        }
        Ok(table)
    }

    #[test]
    fn a_print_tells_the_size_on_the_wire() -> Result<(), Box<dyn Error>> {
        for table in [FieldTable::new(), of_every_type()?] {
            let Table { said, real } = Table::printed(&format!("{table:?}")).ok_or("not understood")?;
            assert_eq!(real, amqp_serde::to_bytes(&table)?.len(), "{table:?}");
            assert_eq!(said, real, "{table:?}");
        }
        Ok(())
    }

    #[test]
    fn a_name_that_was_inserted_twice_is_noticed_at_each_level() -> Result<(), Box<dyn Error>> {
        let mut twice = of_every_type()?;
        twice.insert("0 \"V\"".try_into()?, FieldValue::V);
        let mut around = FieldTable::new();
        around.insert("inside".try_into()?, FieldValue::F(twice.clone()));
        let in_array = FieldArray::try_from(vec![FieldValue::F(around.clone())])?;
        let mut outside = FieldTable::new();
        outside.insert("array".try_into()?, FieldValue::A(in_array));
        for table in [twice, around, outside] {
            let Table { said, real } = Table::printed(&format!("{table:?}")).ok_or("not understood")?;
            assert!(said > real, "{table:?}");
        }
        Ok(())
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for print in
            ["", "Table(0, {})", "FieldTable(x, {})", "FieldTable(2, {ShortStr(0, \"\"): Z(1)})", "FieldTable(0, \""]
        {
            assert!(Table::printed(print).is_none(), "{print}");
        }
    }
}
