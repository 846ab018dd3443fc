//! Makes text from other programs safe for a terminal and a log.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

/// Shows text from another program safely. Characters that would move the cursor, colour the terminal, begin another line
/// or reverse the direction of the text are written as escapes, such as `\n` or `\u{1b}`. Letters of all scripts,
/// combining marks and emoji stay as they are.
///
/// It escapes all control characters (those of ASCII and those from U+0080 to U+009F, also tab and line break), the
/// line and paragraph separators U+2028 and U+2029, and the characters that control the direction of text (Unicode's
/// property `Bidi_Control`). Bytes that are not UTF-8 appear as U+FFFD. With `{}` a backslash stays a backslash, so the
/// result is for reading, not for decoding. `{:?}` adds quotes, and escapes quotes and backslashes inside.
///
/// It takes a `&str`, a `&String` or bytes. For the body of a message there is [`Message::display`](crate::Message::display).
///
/// ```
/// use common::escaped;
///
/// let key = "kern.\u{1b}[31mcritical\r\n [x] forged";
/// assert_eq!(escaped(key).to_string(), r"kern.\u{1b}[31mcritical\r\n [x] forged");
/// assert_eq!(escaped("Grüße, नमस्ते 👩‍🚀").to_string(), "Grüße, नमस्ते 👩‍🚀");
/// assert_eq!(format!("{:?}", escaped("say \"hello\"")), r#""say \"hello\"""#);
/// ```
pub fn escaped<T: AsRef<[u8]> + ?Sized>(text: &T) -> Escaped<'_> {
    Escaped(text.as_ref())
}

/// Text that is escaped when it is shown. Made by [`escaped`].
#[derive(Clone, Copy)]
pub struct Escaped<'a>(&'a [u8]);

impl Escaped<'_> {
    fn write(&self, f: &mut fmt::Formatter<'_>, also: &[char]) -> fmt::Result {
        let text: Cow<'_, str> = String::from_utf8_lossy(self.0);
        let mut rest = &*text;
        // Writes whole pieces at a time, because there is rarely anything to escape.
        while let Some(at) = rest.find(|character| is_control(character) || also.contains(&character)) {
            let (before, from) = rest.split_at(at);
            f.write_str(before)?;
            let mut characters = from.chars();
            match characters.next() {
                Some(character) if also.contains(&character) => write!(f, "\\{character}")?,
                // `\n`, `\r` and `\t` by name.
                Some(character @ ('\n' | '\r' | '\t')) => write!(f, "{}", character.escape_default())?,
                Some(character) => write!(f, "{}", character.escape_unicode())?,
                None => {}
            }
            rest = characters.as_str();
        }
        f.write_str(rest)
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &[])
    }
}

impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        self.write(f, &['"', '\\'])?;
        f.write_char('"')
    }
}

/// Rust's own `{:?}` escapes more: also combining marks and the joiners inside emoji, which readers need as they are.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Text that a user typed, for a message: on one line, and not too long.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let mut shortened: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shortened.push('…');
    }
    shortened
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            ("\u{1b}[2J\u{1b}]0;title\u{7}", r"\u{1b}[2J\u{1b}]0;title\u{7}"),
            ("one\r\n [x] two\ttab\u{8}\u{7f}\0", r"one\r\n [x] two\ttab\u{8}\u{7f}\u{0}"),
            ("\u{9b}31m \u{85} \u{2028} \u{2029}", r"\u{9b}31m \u{85} \u{2028} \u{2029}"),
            ("\u{202e}txt.exe\u{2066}\u{200f}\u{61c}", r"\u{202e}txt.exe\u{2066}\u{200f}\u{61c}"),
        ] {
            assert_eq!(escaped(text).to_string(), shown);
        }
    }

    #[test]
    fn letters_of_all_scripts_stay_letters() {
        // Among them a mark at the beginning, Hindi vowel signs, a Persian non-joiner, joined emoji, a flag.
        for text in ["", "C:\\path \"quoted\"", "\u{301}e\u{301}", "हिन्दी", "می‌خواهم", "👨‍👩‍👧 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "中文 ไทย עברית"]
        {
            assert_eq!(escaped(text).to_string(), text);
        }
        assert_eq!(format!("{:?}", escaped("C:\\a \"हि\"\n")), r#""C:\\a \"हि\"\n""#);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(escaped(b"a\xff\x1b").to_string(), "a\u{fffd}\\u{1b}");
    }
}
