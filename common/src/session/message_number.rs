//! The number of a mandatory message, in a header, because RabbitMQ returns a message without its number.

use amqprs::{BasicProperties, FieldValue};

/// The header with the number of a mandatory message.
const NUMBER_HEADER: &str = "x-publish-number";

/// Its size among the headers: the name with its length, the type, the number.
pub(crate) const NUMBER_FIELD: usize = 1 + NUMBER_HEADER.len() + 1 + 8;

/// Marks a mandatory message with its number.
pub(crate) fn put_number(properties: &mut BasicProperties, number: u64) {
    let (Ok(name), Ok(number)) = (NUMBER_HEADER.try_into(), i64::try_from(number)) else { return };
    let mut headers = properties.headers().cloned().unwrap_or_default();
    // Inserting a key twice corrupts the table (AMQPRS.md, "Header tables").
    headers.remove(&name);
    headers.insert(name, FieldValue::l(number));
    properties.with_headers(headers);
}

/// Removes the number from a returned message.
pub(crate) fn remove_number(mut properties: BasicProperties) -> (BasicProperties, Option<u64>) {
    let number = NUMBER_HEADER.try_into().ok().and_then(|name| {
        let mut headers = properties.headers()?.clone();
        let FieldValue::l(number) = headers.remove(&name)? else { return None };
        properties.with_headers(headers);
        number.try_into().ok()
    });
    (properties, number)
}
