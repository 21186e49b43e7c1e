//! Text that a terminal only shows. What a server says, and names of its files, may hold sequences that clear the
//! screen, hide what follows or answer in the operator's place.

use std::borrow::Cow;
use std::fmt::Write;

/// The text with its control characters spelled out, other than line breaks and tabs.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let drives = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if !text.contains(drives) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if drives(character) {
            // Writing to a String cannot fail.
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn spells_out_what_drives_a_terminal() {
        for (text, shown) in [
            ("größe 1\n\tof 2", "größe 1\n\tof 2"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("\rb\u{7}\u{8}\u{9b}c\u{0}", "\\rb\\u{7}\\u{8}\\u{9b}c\\u{0}"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }
}
