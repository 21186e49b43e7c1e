//! Values of settings as `SHOW` prints them.

/// Reads an amount of memory (`GUC_UNIT_MEMORY`): a number, with a unit unless it is bytes, such as `16MB`. Returns bytes.
#[must_use]
pub fn parse_memory(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory() {
        for (text, bytes) in [
            ("8192", Some(8192)),
            ("512B", Some(512)),
            ("16MB", Some(16 << 20)),
            ("1GB", Some(1 << 30)),
            ("2TB", Some(2 << 40)),
            ("", None),
            ("MB", None),
            ("-1MB", None),
            ("1 MB", None),
            ("1mb", None),
            ("1.5GB", None),
            ("99999999999TB", None),
        ] {
            assert_eq!(parse_memory(text), bytes, "{text}");
        }
    }
}
