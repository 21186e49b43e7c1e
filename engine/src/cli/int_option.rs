//! Options that take a whole number, judged and refused as the stock tools do (`option_parse_int`,
//! `src/fe_utils/option_utils.c`).

use std::ops::RangeInclusive;

use anyhow::bail;

/// Reads the value of an option that is shown as `option`, such as `-s/--status-interval`. Unlike there, nothing at all is
/// no number.
pub(super) fn parse_int(text: &str, option: &str, range: RangeInclusive<i32>) -> anyhow::Result<i32> {
    let number = text.trim_matches(|character: char| character.is_ascii_whitespace());
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("invalid value \"{text}\" for option {option}");
    }
    match number.parse() {
        Ok(value) if range.contains(&value) => Ok(value),
        // Digits that are no number are too many.
        _ => bail!("{option} must be in range {}..{}", range.start(), range.end()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_int;

    #[test]
    fn numbers_are_read_as_strtol_reads_them() {
        for (text, expected) in [("0", 0), (" 7\t", 7), ("+9", 9), ("009", 9), ("-0", 0)] {
            assert_eq!(parse_int(text, "-s", 0..=9).expect(text), expected, "{text}");
        }
        for (text, expected) in [
            ("x", "invalid value \"x\" for option -s"),
            ("", "invalid value \"\" for option -s"),
            ("-", "invalid value \"-\" for option -s"),
            ("5x", "invalid value \"5x\" for option -s"),
            ("1.5", "invalid value \"1.5\" for option -s"),
            ("10", "-s must be in range 0..9"),
            ("-1", "-s must be in range 0..9"),
            ("99999999999999999999", "-s must be in range 0..9"),
        ] {
            assert_eq!(parse_int(text, "-s", 0..=9).expect_err(text).to_string(), expected, "{text}");
        }
    }
}
