//! Writes JSON. JSON has no infinity and no NaN: serde_json writes `null` for them, and the other side would take this
//! for a result.

use std::fmt::Display;

use serde::ser::{
    Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use serde_json::{Error, Result};

/// Writes a value as JSON. An error if it contains, at any depth, a number that JSON does not have.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    value.serialize(Finite)?;
    serde_json::to_vec(value)
}

/// Named arguments as JSON. They must be an object. No arguments (`()`) become an empty object.
pub(crate) fn object(arguments: &impl Serialize) -> crate::Result<Vec<u8>> {
    match to_json(arguments) {
        Ok(none) if none == b"null" => Ok(b"{}".to_vec()),
        Ok(object) if object.starts_with(b"{") => Ok(object),
        Ok(other) => {
            let other = String::from_utf8_lossy(&other);
            Err(crate::Error::Invalid(format!("the arguments must be a JSON object with names, not {other}")))
        }
        Err(error) => Err(crate::Error::Invalid(format!("the arguments cannot be written as JSON: {error}"))),
    }
}

/// A serializer that writes nothing. It only checks the numbers.
#[derive(Clone, Copy)]
struct Finite;

impl Finite {
    fn check(number: f64) -> Result<()> {
        match number.is_finite() {
            true => Ok(()),
            false => Err(Error::custom(format_args!("JSON has no number for `{number}`"))),
        }
    }
}

macro_rules! nothing_to_check {
    ($($method:ident($($argument:ty),*);)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<()> {
            Ok(())
        }
    )*};
}

macro_rules! parts_to_check {
    ($($method:ident($($argument:ty),*) -> $parts:ident;)*) => {$(
        type $parts = Self;

        fn $method(self, $(_: $argument),*) -> Result<Self> {
            Ok(self)
        }
    )*};
}

impl Serializer for Finite {
    type Ok = ();
    type Error = Error;

    nothing_to_check! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    parts_to_check! {
        serialize_seq(Option<usize>) -> SerializeSeq;
        serialize_tuple(usize) -> SerializeTuple;
        serialize_tuple_struct(&'static str, usize) -> SerializeTupleStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> SerializeTupleVariant;
        serialize_map(Option<usize>) -> SerializeMap;
        serialize_struct(&'static str, usize) -> SerializeStruct;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> SerializeStructVariant;
    }

    fn serialize_f32(self, number: f32) -> Result<()> {
        Self::check(number.into())
    }

    fn serialize_f64(self, number: f64) -> Result<()> {
        Self::check(number)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T>(self, _: &'static str, _: u32, _: &'static str, value: &T) -> Result<()>
    where
        T: Serialize + ?Sized,
    {
        value.serialize(self)
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Result<()> {
        Ok(())
    }
}

macro_rules! parts {
    ($($parts:ident: $method:ident($($key:ty)?);)*) => {$(
        impl $parts for Finite {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $key,)? value: &T) -> Result<()> {
                value.serialize(*self)
            }

            fn end(self) -> Result<()> {
                Ok(())
            }
        }
    )*};
}

parts! {
    SerializeSeq: serialize_element();
    SerializeTuple: serialize_element();
    SerializeTupleStruct: serialize_field();
    SerializeTupleVariant: serialize_field();
    SerializeStruct: serialize_field(&'static str);
    SerializeStructVariant: serialize_field(&'static str);
}

impl SerializeMap for Finite {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        key.serialize(*self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        value.serialize(*self)
    }

    fn end(self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::to_json;

    #[derive(Serialize)]
    enum Shape {
        Point,
        Circle(f64),
        Line(f32, f64),
        Box { width: f64 },
    }

    #[derive(Serialize)]
    struct Drawing {
        shapes: Vec<Shape>,
        scale: Option<f64>,
        notes: BTreeMap<u8, (f64, ())>,
    }

    fn drawing(number: f64, at: usize) -> Drawing {
        let value = |place| if place == at { number } else { 0.5 };
        Drawing {
            shapes: vec![
                Shape::Point,
                Shape::Circle(value(0)),
                Shape::Line(value(1) as f32, value(2)),
                Shape::Box { width: value(3) },
            ],
            scale: Some(value(4)),
            notes: [(1, (value(5), ()))].into(),
        }
    }

    #[test]
    fn a_number_that_json_does_not_have_is_found_wherever_it_is() {
        let written = to_json(&drawing(0.5, 0)).expect("JSON");
        let expected = concat!(
            r#"{"shapes":["Point",{"Circle":0.5},{"Line":[0.5,0.5]},{"Box":{"width":0.5}}],"#,
            r#""scale":0.5,"notes":{"1":[0.5,null]}}"#
        );
        assert_eq!(String::from_utf8_lossy(&written), expected);
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for at in 0..6 {
                let error = to_json(&drawing(number, at)).expect_err("no JSON");
                assert_eq!(error.to_string(), format!("JSON has no number for `{number}`"), "at {at}");
            }
        }
    }
}
